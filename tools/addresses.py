"""The course's address on GitHub: read as people paste it, and mended wherever it stands.

Needs the standard library only, so that it runs before any set-up.
"""

import re
from collections.abc import Collection

from course import CourseError

PLACEHOLDER = "OWNER/llama-in-8-bits"  # what a copy holds before it has an address
GITHUB = ("github.com", "www.github.com", "ssh.github.com")
COLAB = "colab.research.google.com"
HOSTED = re.compile(r"(?:[a-z+]+://)?(?:[^/@\s]+@)?([\w-]+(?:\.[\w-]+)+)(?::\d+)?[/:](.*)", re.I)
OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,38}")
NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")

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


def parse(text: str) -> str:
    """OWNER/NAME of an address as browsers show it, git takes it, or people write it.

    Raises CourseError for what is no repository on GitHub.
    """
    given = text.strip().removeprefix("git clone ").strip(" <>\"'")
    if hosted := HOSTED.fullmatch(given):
        host, path = hosted[1].lower(), hosted[2]
        if host == COLAB:
            path = path.removeprefix("github/")
        elif host not in GITHUB:
            raise CourseError(
                f"the repository is on {host}; Colab's badges work with GitHub only. Give OWNER/NAME "
                "of a repository on github.com"
            )
        if HOSTED.fullmatch(path):  # one address within another
            return parse(path)
        parts = [part for part in re.split("[?#]", path)[0].split("/") if part][:2]
    else:
        parts = given.removesuffix("/").split("/")
    if len(parts) == 2:
        owner, name = parts[0], re.sub(r"(\.git)+$", "", parts[1], flags=re.I)
        if OWNER.fullmatch(owner) and NAME.fullmatch(name) and name not in (".", ".."):
            return f"{owner}/{name}"
    raise CourseError(
        f"repository is {text!r}; it must be OWNER/NAME, such as jane/llama-in-8-bits, or the "
        "address of a repository on github.com"
    )


def own(text: str, notebooks: Collection[str]) -> set[str]:
    """Addresses of the course, in lower case, from places of a text that hold no other.

    `notebooks`: the names of its notebooks, without ".ipynb".
    """
    found = [match[2] for match in PYPROJECT.finditer(text)]
    found += [match[2] for match in CITATION.finditer(text)]
    found += [match[2] for match in NOTEBOOK.finditer(text) if match[4] in notebooks]
    found += [match[1] for match in CLONE.finditer(text) if match[4]]
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


def mended(text: str, address: str, earlier: Collection[str], notebooks: Collection[str]) -> str:
    """The text with `address` in place of every earlier one; links to other projects stay."""

    def linked(match: re.Match[str]) -> str:
        return f"{match[1]}{address}{match[3]}" if match[4] in notebooks else match[0]

    def cloned(match: re.Match[str]) -> str:
        if not (match[4] or parsed([match[1]]) & earlier):
            return match[0]
        folder = address.split("/")[1]
        # A folder of the reader's own choice would stand between the address and `cd`.
        return f"git clone https://github.com/{address}.git{match[2]}{folder}"

    def known(match: re.Match[str]) -> str:
        inside = text[match.end() : match.end() + 1] == "/"  # a file's address has no ".git"
        return match[1] + address + (".git" if match[2] and not inside else "")

    earlier = {*earlier, address.lower(), PLACEHOLDER.lower()}
    text = PYPROJECT.sub(f'Repository = "https://github.com/{address}"', text)
    text = CITATION.sub(rf"repository-code: \1https://github.com/{address}", text)
    text = NOTEBOOK.sub(linked, text)
    text = CLONE.sub(cloned, text)
    return _anywhere(earlier).sub(known, text)


def _anywhere(addresses: Collection[str]) -> re.Pattern[str]:
    """One of these addresses in any link to GitHub, or to a service that reads from there."""
    any_of = "|".join(re.escape(one) for one in sorted(addresses, key=len, reverse=True))
    host = r"((?:github\.com|githubusercontent\.com|/github|/gh)[/:])/*"
    doubled = r"(?:(?:https?://)?(?:www\.)?github\.com[/:])*"
    return re.compile(rf"{host}{doubled}(?:{any_of})((?:\.git)*)(?![\w-]|\.\w)", re.I)
