"""Decoded images and outputs of frozen networks, kept so that they are computed once."""

from nc_finetune.cache.cached_rows import CachedRows as CachedRows
from nc_finetune.cache.feature_store import FeatureStore as FeatureStore
from nc_finetune.cache.feature_store import FileWriter as FileWriter
from nc_finetune.cache.feature_store import MemoryWriter as MemoryWriter
from nc_finetune.cache.feature_store import open_store as open_store
from nc_finetune.cache.fingerprint import hash_batches as hash_batches
from nc_finetune.cache.growing_store import GrowingStore as GrowingStore
from nc_finetune.cache.row_layout import RowLayout as RowLayout
