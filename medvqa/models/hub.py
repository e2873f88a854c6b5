"""Whether the Hugging Face hub can be reached, asked before its client retries for minutes."""

from functools import cache
from pathlib import Path
from threading import Thread

from medvqa.config.errors import UserError
from medvqa.config.model import ModelConfig
from medvqa.models.source import NO_NETWORK, model_source

HUB_PATIENCE_S = 5.0


@cache
def hub_answers() -> bool:
    """Return whether the hub can be reached; asked once, since each refusal takes its time."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    answers = []

    def ask() -> None:
        try:
            answers.append(get_session().head(constants.ENDPOINT, timeout=HUB_PATIENCE_S))
        except Exception:  # the network raises a dozen unrelated types
            return

    # In a thread, because a name server that is silent obeys no timeout of the client.
    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_PATIENCE_S)
    return bool(answers)


def check_base(config: ModelConfig) -> None:
    """Find out in seconds whether the base can be had.

    Raises:
        UserError: If its directory is no model, or it is neither on this machine nor can the hub be
            reached.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    source = model_source(config)
    if Path(source).is_dir():
        return
    file = try_to_load_from_cache(source, "config.json", revision=config.revision)
    if not isinstance(file, str) and not hub_answers():
        raise UserError(
            f"cannot load the base model {source}: {constants.ENDPOINT} does not answer, and the "
            f"hub's local cache has no copy {NO_NETWORK}"
        )
