"""The course's address on GitHub: read as people paste it, and mended wherever it stands.

Needs the standard library only, so that it runs before any set-up.
"""

import re
from collections.abc import Collection

from common import CourseError

PLACEHOLDER = "OWNER/llama-in-8-bits"  # what a copy holds before it has an address
COLAB = "colab.research.google.com"
# Hosts that show what is on GitHub, and what their paths have before OWNER/NAME.
GITHUB = {
    **dict.fromkeys("github.com www.github.com m.github.com ssh.github.com github.dev".split(), ""),
    **dict.fromkeys("raw.githubusercontent.com codeload.github.com githubtocolab.com".split(), ""),
    **dict.fromkeys((COLAB, "nbviewer.org", "nbviewer.jupyter.org", "vscode.dev"), "github/"),
    "api.github.com": "repos/",
    "mybinder.org": "v2/gh/",
}
# First words of GitHub's own pages, which no user can have as a name.
RESERVED = frozenset(
    "about account apps assets codespaces collections contact copilot customer-stories dashboard "
    "enterprise enterprises events explore features issues join login logout marketplace mobile new "
    "notifications organizations orgs pricing pulls readme resources search security sessions "
    "settings signup site solutions sponsors stars team topics trending users watching".split()
)
HOSTED = re.compile(r"(?:[a-z+]+://)?(?:[^/@\s]+@)?([\w-]+(?:\.[\w-]+)+)(?::\d+)?[/:](.*)", re.I)
TWICE = re.compile(r"(?:(?:www\.)?github\.com[/:]+)+", re.I)  # as in github.com/github.com/jane/x
OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,38}")
NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
# What stands between words: blanks, also those without width, brackets and quotation marks.
BETWEEN = re.compile("[\\s\u200b\u200e\u200f\u2060\ufeff()\\[\\]{}<>|\"'`“”„«»‘’‚]+")
COMMAND = re.compile(r"(?:\$ ?)?(?:git clone|gh repo \w+) (?:-\S+ )*")  # before OWNER/NAME
PAGES = ("tree", "blob", "raw", "edit", "commit", "commits", "issues", "pull", "wiki", "releases")

# Places that hold nothing but the course's own address, however damaged it is there.
PYPROJECT = re.compile(r"(?m)^[ \t]*Repository[ \t]*=[ \t]*([\"'])(.*?)\1")
CITATION = re.compile(r"(?m)^repository-code:[ \t]*([\"']?)([^\"'\s#]*)")
BOOTSTRAP = re.compile(r"git\+([^\s\"'@]+)")
NOTEBOOK = re.compile(
    rf"(https?://{re.escape(COLAB)}/github/)([^\s\"'()<>|]*?)(/blob/[^\s\"'()<>|/]+/notebooks/(\w+)\.)"
)
# The third part is only looked at: who clones this and goes on with course.py clones the course.
CLONE = re.compile(
    r"git clone (\S+)(\s+(?:&& )?cd )([\w.-]+)(?=(\s+(?:&& )?python3? tools/course\.py)?)"
)


class OtherHostError(CourseError):
    """The address is that of a repository, or of something else, that is not on GitHub."""


def parse(text: str) -> str:
    """OWNER/NAME of an address as browsers show it, git takes it, or people write it.

    Raises CourseError unless it is a repository on GitHub.
    """
    words = [word.rstrip(".,;:!?") for word in BETWEEN.split(text)]
    # One address may be within another: a site that shows or forwards to a page of GitHub's.
    parts = [part for word in words for part in re.split(r"(?<=.)(?=https?://)", word)]
    hosted = [match for part in parts if (match := HOSTED.fullmatch(part))]
    found = {name.lower(): name for match in reversed(hosted) if (name := _hosted(match))}
    if not hosted and (name := _bare(" ".join(filter(None, words)))):
        return name
    if len(found) > 1:
        raise CourseError(
            f"there are several repositories in {text!r}: {', '.join(sorted(found.values()))}; "
            "give only the course's OWNER/NAME"
        )
    if found:
        return found.popitem()[1]
    if hosted and (host := hosted[0][1].lower()) not in GITHUB:
        raise OtherHostError(
            f"the repository is on {host}; Colab's badges work with GitHub only. Give OWNER/NAME "
            "of a repository on github.com"
        )
    raise CourseError(
        f"repository is {text!r}; it must be OWNER/NAME, such as jane/llama-in-8-bits, or the "
        "address of a repository on github.com"
    )


def _hosted(match: re.Match[str]) -> str | None:
    """OWNER/NAME of an address that HOSTED matches, None where it is not on GitHub."""
    host, path = match[1].lower(), match[2].lstrip("/")
    if host not in GITHUB or not path.startswith(GITHUB[host]):
        return None
    path = TWICE.sub("", path.removeprefix(GITHUB[host]), count=1)
    parts = [part for part in re.split("[?#@,;]", path)[0].split("/") if part]
    return _repository(parts[:2])


def _bare(text: str) -> str | None:
    """OWNER/NAME as it is, after a command that takes it so, or before a page's path."""
    command = COMMAND.match(text)
    words = text[command.end() if command else 0 :].split(" ")
    parts = words[0].removesuffix("/").split("/")
    if (len(words) > 1 and not command) or (len(parts) > 2 and parts[2] not in PAGES):
        return None
    return _repository(parts[:2])


def _repository(parts: list[str]) -> str | None:
    if len(parts) != 2:
        return None
    owner, name = parts[0], re.sub(r"(\.git)+$", "", parts[1], flags=re.I)
    valid = OWNER.fullmatch(owner) and NAME.fullmatch(name) and name not in (".", "..")
    return f"{owner}/{name}" if valid and owner.lower() not in RESERVED else None


def own(text: str, notebooks: Collection[str]) -> set[str]:
    """Addresses of the course, in lower case, in a text in which it names no other repository.

    `notebooks`: the names of its notebooks, without ".ipynb".
    """
    found = [match[2] for match in PYPROJECT.finditer(text)]
    found += [match[2] for match in CITATION.finditer(text)]
    found += [match[2] for match in NOTEBOOK.finditer(text) if match[4] in notebooks]
    return parsed(found)


def parsed(addresses: Collection[str]) -> set[str]:
    """Those that can be read, in lower case: GitHub knows no difference."""
    found = set()
    for text in addresses:
        try:
            found.add(parse(text).lower())
        except CourseError:
            continue  # too damaged to be known again in another place
    return found


def mended(
    text: str,
    address: str,
    earlier: Collection[str],
    notebooks: Collection[str],
    *,
    own_file: bool = False,
) -> str:
    """The text with `address` in place of every earlier one; links to other projects stay.

    `own_file`: it is pyproject.toml or CITATION.cff, so what it names is the course in any case.
    """
    earlier = {*earlier, address.lower(), PLACEHOLDER.lower()}

    def ours(found: str) -> bool:
        """An earlier address, or one that damage has made unreadable."""
        try:
            return parse(found).lower() in earlier
        except CourseError as error:
            return not isinstance(error, OtherHostError)

    def named(pattern: re.Pattern[str], line: str) -> str:
        def replaced(match: re.Match[str]) -> str:
            return match.expand(line) if own_file or ours(match[2]) else match[0]

        return pattern.sub(replaced, text)

    def linked(match: re.Match[str]) -> str:
        if match[4] in notebooks and ours(match[2]):
            return f"{match[1]}{address}{match[3]}"
        return match[0]

    def cloned(match: re.Match[str]) -> str:
        if not (ours(match[1]) if match[4] else parsed([match[1]]) & earlier):
            return match[0]
        folder = address.split("/")[1]
        # A folder of the reader's own choice would stand between the address and `cd`.
        return f"git clone https://github.com/{address}.git{match[2]}{folder}"

    def known(match: re.Match[str]) -> str:
        inside = text[match.end() : match.end() + 1] == "/"  # a file's address has no ".git"
        return match[1] + address + (".git" if match[2] and not inside else "")

    text = named(PYPROJECT, f'Repository = "https://github.com/{address}"')
    text = named(CITATION, rf"repository-code: \1https://github.com/{address}")
    text = NOTEBOOK.sub(linked, text)
    text = CLONE.sub(cloned, text)
    return _anywhere(earlier).sub(known, text)


def _anywhere(addresses: Collection[str]) -> re.Pattern[str]:
    """One of these addresses in any link to GitHub, or to a service that reads from there."""
    any_of = "|".join(re.escape(one) for one in sorted(addresses, key=len, reverse=True))
    host = r"((?:github\.com|githubusercontent\.com|/github|/gh)[/:])/*"
    doubled = r"(?:(?:https?://)?(?:www\.)?github\.com[/:])*"
    return re.compile(rf"{host}{doubled}(?:{any_of})((?:\.git)*)(?![\w-]|\.\w)", re.I)
