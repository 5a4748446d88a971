"""Where a scorer's learned weights come from: a path, or an id of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class WeightsMissing(RuntimeError):
    """Weights are not on this machine and cannot be fetched; one sentence for the user."""


def weights_folder(key: str, value: str, names: tuple[str, ...]) -> Path:
    """The folder that holds `names`, for the configuration's `key` = `value`.

    `value` is a folder, or a hub id "owner/name", of which exactly those files are fetched into the
    hub's cache (HF_HOME). Raises WeightsMissing.
    """
    folder = Path(value).expanduser()
    if folder.is_dir():
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise WeightsMissing(f"{key} = {value!r} has no {' and no '.join(missing)}")
        return folder
    if not is_hub_id(value):
        raise WeightsMissing(
            f"{key} = {value!r} is neither a folder nor a hub id of the form owner/name"
        )
    from huggingface_hub import hf_hub_download

    try:
        files = [Path(hf_hub_download(value, name)) for name in names]
    except Exception as error:  # offline, unknown, gated, disk full: all end the same way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsMissing(
            f"the weights {key} = {value!r} are not on this machine and cannot be fetched "
            f"({reason}); give a folder that holds {' and '.join(names)}"
        ) from None
    return files[0].parent


def is_hub_id(value: str) -> bool:
    """Whether a value has the form owner/name."""
    return _HUB_ID.fullmatch(value) is not None


def weights_file(key: str, value: str, name: str) -> Path:
    """One safetensors file: a path to it, or `name` in a folder or hub repository."""
    file = Path(value).expanduser()
    return file if file.is_file() else weights_folder(key, value, (name,)) / name
