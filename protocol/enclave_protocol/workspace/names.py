"""Which names may travel between the two ends of a workspace. Text in, text out; no I/O.

`check_rel` is for both directions: such a name cannot lead out of the root, and looks like what it
is. `is_reserved` is for what comes out of the enclave: names that a program on the parent runs, or
takes its settings from, without anybody naming them.

Source: THREATS Y-01, Y-02, Y-05; docs/spec/workspace.md, "Names".
"""

import re
import unicodedata
from functools import lru_cache
from typing import Final

from enclave_protocol.errors import EnclaveError

__all__ = [
    "MAX_DEPTH",
    "MAX_NAME_BYTES",
    "MAX_REL_CHARS",
    "TEMPORARY_FOLDER",
    "NameRefusedError",
    "check_rel",
    "fold",
    "is_reserved",
    "parent_of",
    "wrong_name",
]

MAX_REL_CHARS: Final = 2048
MAX_NAME_BYTES: Final = 255
"""NAME_MAX of every file system that matters."""
MAX_DEPTH: Final = 64
TEMPORARY_FOLDER: Final = ".enclave-sync"
"""In the root of either end: where a file is until it is whole. Never mirrored."""

_REFUSED_CATEGORIES: Final = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
"""Controls, format characters (zero-width, bidi), surrogates (bytes that are no UTF-8), private
and unassigned ones, line and paragraph separators."""

# Of shells, editors, version control, notebooks, package managers and agents: read or run because
# they are there.
_RESERVED_NAMES: Final = frozenset(
    """
    .ssh .gnupg .aws .azure .docker .kube .git .hg .svn .bzr .jj .github .gitlab .husky .githooks
    .ipython .jupyter .vscode .vscode-server .idea .fleet .zed .devcontainer .cursor .claude
    .mcp.json .config .local .cache .pki .cargo .rustup .conda .condarc .mamba .mambarc .pixi
    .direnv .envrc .env .flaskenv .bashrc .bash_profile .bash_login .bash_logout .bash_aliases
    .bash_completion .profile .login .logout .inputrc .zshrc .zshenv .zprofile .zlogin .zlogout
    .kshrc .mkshrc .cshrc .tcshrc .shrc .xonshrc .tmux.conf .screenrc .mailcap .forward .rhosts
    .shosts .netrc .crontab .pam_environment .xinitrc .xsession .xsessionrc .xprofile .xresources
    .xdefaults .vim .vimrc .gvimrc .exrc .nvimrc .nvim.lua .emacs .emacs.d .spacemacs .doom.d
    .dir-locals.el .dir-locals-2.el .nanorc .lldbinit .gdbinit .gdbearlyinit
    .gitconfig .gitattributes .gitmodules .hgrc .pre-commit-config.yaml
    .pythonrc .pythonrc.py .pdbrc .pdbrc.py .pypirc .pip .pydistutils.cfg .python-version .venv
    .npmrc .yarnrc .yarnrc.yml .yarn .pnpmfile.cjs .babelrc .eslintrc .eslintrc.js .prettierrc
    .tool-versions .mise.toml .rtx.toml .nvmrc .ruby-version .irbrc .pryrc .gemrc
    .rprofile .renviron .rdata .octaverc .juliarc.jl .julia .sqliterc .psqlrc .my.cnf
    .enclaveignore .coveragerc .directory .autorun
    .curlrc .wgetrc .lftp .lftprc .lessfilter .lesskey .procmailrc .muttrc .mutt .lynxrc .w3m
    .bashrc.d .profile.d .oh-my-zsh .zsh .byobu .tigrc .xbindkeysrc .imwheelrc .pgpass
    .ghci .erlang .iex.exs .ocamlinit .sbclrc .perldb .rdebugrc .luarc .lein .clojure .bundle
    .pylintrc pylintrc .ansible.cfg .terraformrc .ctags .ctags.d .mavenrc .mvn .m2 .gradle .sbt
    .sdkmanrc .bunfig.toml .devcontainer.json .nix-profile .nixpkgs .gemini .codex .continue
    .windsurf .windsurfrules .cursorrules .aider.conf.yml
    sitecustomize usercustomize __pycache__ pyvenv.cfg pip.conf pip.ini node_modules autorun.inf
    desktop.ini
    """.split()  # noqa: SIM905 (a list of literals would be three times as long)
)
_RESERVED_PATTERN: Final = re.compile(
    r"""
      (jupyter|jupyterhub|ipython|nbconvert|voila)(_[a-z0-9_]+)?_config(\.d|\.py|\.json)?
    | (sitecustomize|usercustomize|conftest)\..+     # also compiled, or as an extension module
    | .*\.(pth|pyc|pyo|desktop|lnk)
    | \.(bash|zsh|psql|sqlite|gdb|lldb|env|eslint|prettier|stylelint|babel|mocha)(rc|init)?[.-].+
    | git~[0-9]+                                     # .git by its short name on some file systems
    """,
    re.VERBOSE,
)


class NameRefusedError(EnclaveError):
    """A name that does not travel. `reason` is for people, without the name."""

    def __init__(self, rel: str, reason: str) -> None:
        super().__init__(f"the name {ascii(rel)[:300]} is refused: {reason}")
        self.reason = reason


def check_rel(rel: str) -> str:
    """Return `rel`, a path below the root: names joined by single slashes.

    Args:
        rel: As received, or as found in a folder (surrogates stand for bytes that are no UTF-8).

    Raises:
        NameRefusedError: It is absolute, empty, too long or too deep; or one of its names is
            empty, a dot or two, has a character that does not show or a backslash, ends in a dot
            or a space, is not NFC, or would lead elsewhere in compatibility form.
    """
    if not rel:
        raise NameRefusedError(rel, "it is empty")
    if len(rel) > MAX_REL_CHARS:
        raise NameRefusedError(rel, f"it is longer than {MAX_REL_CHARS} characters")
    names = rel.split("/")
    if len(names) > MAX_DEPTH:
        raise NameRefusedError(rel, f"it is more than {MAX_DEPTH} folders deep")
    for name in names:
        reason = wrong_name(name)
        if reason is not None:
            raise NameRefusedError(rel, reason)
    if names[0] == TEMPORARY_FOLDER:
        raise NameRefusedError(rel, "the mirror keeps its own files there")
    return rel


@lru_cache(maxsize=65536)
def wrong_name(name: str) -> str | None:
    """Return why one name does not travel, None if it does."""
    if not name:
        return "a name in it is empty"
    if name in (".", ".."):
        return "a name in it is . or .."
    if name[-1] in ". ":
        return "a name in it ends in a dot or a space"
    if name.isascii():
        if "\\" in name:
            return "a name in it has a backslash"
        if not name.isprintable():
            return "a name in it has a control character"
        return None if len(name) <= MAX_NAME_BYTES else _too_long()
    return _wrong_beyond_ascii(name)


def _wrong_beyond_ascii(name: str) -> str | None:
    if any(unicodedata.category(character) in _REFUSED_CATEGORIES for character in name):
        return "a name in it has a character that does not show, or bytes that are not UTF-8"
    if len(name.encode()) > MAX_NAME_BYTES:
        return _too_long()
    if unicodedata.normalize("NFC", name) != name:
        return "a name in it is not in composed form (Unicode NFC)"
    plain = unicodedata.normalize("NFKC", name)
    if "/" in plain or "\\" in plain or plain in (".", "..") or plain[-1] in ". ":
        return "a name in it looks like a path"
    return None


def _too_long() -> str:
    return f"a name in it is longer than {MAX_NAME_BYTES} bytes"


def parent_of(rel: str) -> str:
    """Return the folder that `rel` is in; "" is the root."""
    return rel.rpartition("/")[0]


@lru_cache(maxsize=65536)
def fold(name: str) -> str:
    """Return what two names share that a file system may take for one: NFKC, case folded."""
    if name.isascii():
        return name.lower()
    folded = unicodedata.normalize("NFKC", name).casefold()
    return unicodedata.normalize("NFKC", folded)


def is_reserved(rel: str) -> bool:
    """Say whether a path must not come out of the enclave: any name on it counts.

    Args:
        rel: A path that passed `check_rel`.
    """
    return any(_is_reserved_name(name) for name in rel.split("/"))


@lru_cache(maxsize=65536)
def _is_reserved_name(name: str) -> bool:
    # What a file system drops at the end, and a stream's name behind a colon (NTFS).
    plain = fold(name).partition(":")[0].rstrip(". ")
    return plain in _RESERVED_NAMES or _RESERVED_PATTERN.fullmatch(plain) is not None
