"""Generators by name: files of a repository on the Hugging Face Hub, or on a server like it (HF_ENDPOINT). Ours.

    downloaded("hf:owner/name@v1", "motion")  # .../snapshots/COMMIT/motion.safetensors, with motion.json beside it
    publish(Path("folder"), "owner/name")     # the address of the commit

A repository has motion.safetensors and motion.json, content.safetensors and content.json, or all four, as
scripts/push_to_hub.py writes them. No other file is downloaded, so no pickle and no code. The library huggingface_hub
keeps files in its cache, and its environment variables apply (HF_HOME, HF_HUB_OFFLINE, HF_TOKEN); it is imported only
when a name is used.
"""

import re
from pathlib import Path
from typing import Any

from vidm.console import short

PREFIX = "hf:"
_NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@(\S+))?", re.ASCII)


def is_hub_name(path: str | Path) -> bool:
    """Whether a checkpoint is given by name: "hf:owner/name", perhaps with "@revision"."""
    return str(path).startswith(PREFIX)


def files_of(generator: str) -> tuple[str, str]:
    """The names of the files of a generator, "motion" or "content", in a repository: settings, weights."""
    return f"{generator}.json", f"{generator}.safetensors"


def _library(name: str) -> Any:
    try:
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise ValueError(f"{name} needs huggingface_hub: pip install huggingface_hub") from error
    return huggingface_hub


def _line(error: Exception) -> str:
    """A message of the library as one line: many have several."""
    return short(" ".join(str(error).split())) or type(error).__name__


def _reason(library: Any, error: Exception) -> str:
    """Why a repository cannot be looked up, and what to do."""
    endpoint = library.constants.ENDPOINT
    if isinstance(error, library.errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to download"
    if isinstance(error, library.errors.RepositoryNotFoundError):
        return f"{endpoint} has no such repository, or none that you may read: check the name, or run hf auth login"
    return f"{endpoint} cannot be reached ({_line(error)}): check the network"


def downloaded(name: str, generator: str) -> Path:
    """The weights of a generator, "motion" or "content", of the repository hf:owner/name[@revision], in the cache.

    A revision is a branch, a tag or a commit; without one it is main. Files that the cache has are not downloaded
    again. If the Hub cannot be asked, the revision is the one that the cache has. Both files are of one commit.
    Raises ValueError, in one line, for everything that can go wrong.
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise ValueError(f"{name}: give hf:owner/name or hf:owner/name@revision")
    repository, revision = found.groups()
    library, missing, unknown = _library(name), set[str](), ""
    settings, weights = files_of(generator)
    try:
        # The library repeats requests for half a minute until a file is found or not; this one is sent once.
        info = library.HfApi().model_info(repository, revision=revision, timeout=library.constants.HF_HUB_ETAG_TIMEOUT)
        missing = {settings, weights} - {file.rfilename for file in info.siblings or ()}
    except library.errors.HFValidationError as error:
        raise ValueError(f"{name} is no name of a repository: {_line(error)}") from error
    except library.errors.RevisionNotFoundError as error:
        raise ValueError(
            f"{name}: the repository has no revision {revision}: give a branch, a tag or a commit"
        ) from error
    except Exception as error:  # of many types; the files may be in the cache
        unknown = _reason(library, error)
    if missing:
        raise ValueError(f"{name} has no {generator} generator of VIDM: it lacks {' and '.join(sorted(missing))}")
    try:
        local = bool(unknown)
        described = Path(library.hf_hub_download(repository, settings, revision=revision, local_files_only=local))
        commit = described.parent.name
        return Path(library.hf_hub_download(repository, weights, revision=commit, local_files_only=local))
    except library.errors.LocalEntryNotFoundError as error:
        raise ValueError(f"{name} is not in the cache, and {unknown or _reason(library, error)}") from error
    except Exception as error:
        raise ValueError(f"{name} was not downloaded: {_line(error)}") from error


def publish(folder: Path, repository: str, private: bool = False) -> str:
    """Upload the files of a folder to a repository, owner/name, as one commit; return the address of the commit.

    A missing repository is created, public or `private`. Raises ValueError, in one line, without the library, the
    network or a token that may write.
    """
    library = _library(f"uploading to {repository}")
    try:
        api = library.HfApi()
        api.create_repo(repository, private=private or None, exist_ok=True)
        files = [library.CommitOperationAdd(path.name, path) for path in sorted(folder.iterdir())]
        return str(api.create_commit(repository, files, commit_message="Upload generators of VIDM").commit_url)
    except Exception as error:  # of many types
        where = f"{repository} was not uploaded to {library.constants.ENDPOINT}"
        raise ValueError(f"{where}: {_line(error)}; hf auth login stores a token that may write") from error
