"""What a folder of results says: tables, pictures, pages."""

from nc_finetune.report._tables.summary import best_by_network as best_by_network
from nc_finetune.report.report import ReportFiles as ReportFiles
from nc_finetune.report.report import check_report_extra as check_report_extra
from nc_finetune.report.report import print_summary as print_summary
from nc_finetune.report.report import write_report as write_report
