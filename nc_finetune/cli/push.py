"""``nc-finetune push``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from nc_finetune.cli.options import NewFile
from nc_finetune.cli.own_inputs import refuse_overwriting


def push(
    model: Path,
    repo: str,
    *,
    public: bool = False,
    update: bool = False,
    licence: Annotated[str | None, ("metavar", "NAME")] = None,
    card: Annotated[Path | None, ("metavar", "FILE")] = None,
    card_only: Annotated[NewFile | None, ("metavar", "FILE")] = None,
) -> int:
    """Put a model on the Hugging Face hub, with a card that says what was measured.

    load_delta("hub:user/name") and predict hub:user/name have it from there. The delta and the card go there, in one
    commit; report.html, which shows images, stays here. Log in once by hf auth login, or set HF_TOKEN. Extra hub.

    Args:
        model: a delta (.safetensors), or the folder of nc-finetune tune
        repo: user/name, which must not exist yet
        public: let everybody see it; otherwise it is private
        update: add to a repository that exists, if it is public or private as asked for
        licence: of the model, by its short name on the hub, such as apache-2.0 (default: left open)
        card: Markdown of your own in place of the card that is written
        card_only: write the card there, to be read and edited, and push nothing

    Examples:
        nc-finetune push tuned user/flowers --card-only card.md
        nc-finetune push tuned user/flowers --card card.md --public
        nc-finetune push delta.safetensors user/flowers --update --licence apache-2.0
    """
    from nc_finetune._common.atomic_files import write_text_atomically
    from nc_finetune.deployment import model_card, push_model
    from nc_finetune.deployment.model_facts import FACTS
    from nc_finetune.deployment.push import delta_in

    if card_only is not None:
        of_pushing = {"--card": card is not None, "--public": public, "--update": update}
        if any(of_pushing.values()):
            named = next(name for name, there in of_pushing.items() if there)
            raise ValueError(f"--card-only pushes nothing, and {named} is for pushing; leave one of them out")
        delta = delta_in(model)
        refuse_overwriting([card_only], delta, delta.with_name(FACTS))
        write_text_atomically(card_only, model_card(delta, repo, licence=licence))
        print(f"Card: {card_only}")  # noqa: T201
        return 0
    print(f"Model: {push_model(model, repo, public=public, update=update, licence=licence, card=card)}")  # noqa: T201
    return 0
