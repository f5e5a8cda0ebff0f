"""An address of the repository is read as people paste it, or refused with the reason."""

import pytest

import addresses
from common import CourseError


@pytest.mark.parametrize(
    "pasted",
    [
        "jane/x",
        " jane/x\n",
        "jane/x/",
        "jane/x.git",
        "jane/x.git.git",
        "https://github.com/jane/x",
        "http://github.com/jane/x",
        "HTTPS://GitHub.com/jane/x",
        "https://www.github.com/jane/x",
        "https://github.com/jane/x/",
        "https://github.com/jane/x.git",
        "https://github.com/jane/x.git/",
        "https://github.com//jane/x",
        "https://github.com/jane/x/tree/main",
        "https://github.com/jane/x/blob/main/README.md",
        "https://github.com/jane/x?tab=readme-ov-file#two-commands",
        "https://jane:secret@github.com/jane/x.git",
        "https://github.com:443/jane/x",
        "<https://github.com/jane/x>",
        '"https://github.com/jane/x"',
        "github.com/jane/x",
        "www.github.com/jane/x/",
        "git@github.com:jane/x.git",
        "git@github.com:jane/x",
        "git@github.com/jane/x.git",
        "ssh://git@github.com/jane/x.git",
        "ssh://git@github.com:22/jane/x.git",
        "ssh://git@ssh.github.com:443/jane/x.git",
        "git://github.com/jane/x.git",
        "git+https://github.com/jane/x",
        "git clone https://github.com/jane/x.git",
        "https://github.com/https://github.com/jane/x",
        "https://colab.research.google.com/github/jane/x/blob/main/notebooks/00_start_here.ipynb",
        "https://colab.research.google.com/#fileId=https://github.com/jane/x/blob/main/a.ipynb",
        "git+https://github.com/jane/x@main",
        "git+https://github.com/jane/x.git@main#egg=llama-int8",
        "pip install git+https://github.com/jane/x",
        'pip install "llama-int8 @ git+ssh://git@github.com/jane/x.git@v1"',
        "git clone --depth 1 https://github.com/jane/x.git",
        "git clone https://github.com/jane/x.git folder",
        "git clone https://github.com/jane/x.git && cd x/tools",
        "$ git clone git@github.com:jane/x.git",
        "gh repo clone jane/x",
        "gh repo clone jane/x folder",
        "git remote add origin https://github.com/jane/x.git",
        "origin\thttps://github.com/jane/x.git (fetch)\norigin\thttps://github.com/jane/x.git (push)",
        "[x](https://github.com/jane/x)",
        "[![Open](https://colab.research.google.com/assets/colab-badge.svg)]"
        "(https://colab.research.google.com/github/jane/x/blob/main/notebooks/00_first.ipynb)",
        "(https://github.com/jane/x)",
        "`https://github.com/jane/x`",
        "\u201chttps://github.com/jane/x\u201d",
        "\u00abjane/x\u00bb",
        "https://github.com/jane/x\u200b",
        "https://github.com/jane/x.",
        "https://github.com/jane/x.git;",
        "(see https://github.com/jane/x).",
        "My fork is at github.com/jane/x, of course: [here].",
        "jane/x.",
        "jane/x/tree/main",
        "jane/x/blob/main/README.md",
        "https://raw.githubusercontent.com/jane/x/main/README.md",
        "https://github.dev/jane/x",
        "https://vscode.dev/github/jane/x",
        "https://nbviewer.org/github/jane/x/blob/main/notebooks/00_first.ipynb",
        "https://mybinder.org/v2/gh/jane/x/main?filepath=notebooks",
        "https://api.github.com/repos/jane/x/issues",
        "https://www.google.com/url?q=https://github.com/jane/x",
    ],
)
def test_every_form_of_an_address_is_the_same_repository(pasted):
    assert addresses.parse(pasted) == "jane/x"


@pytest.mark.parametrize("address", ["jane-doe/my.course_2", "J/X.github.io", "42/-", "jane/git"])
def test_owner_and_name_are_kept_as_they_are(address):
    assert addresses.parse(address) == address
    assert addresses.parse(f"https://github.com/{address}.git") == address


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "/", "<>", "jane", "jane/", "/x", "a/b/c", "jane/x/lectures/main", "jane x/y"),
        *("jane/ü", "jane/.git", "jane/..", "-jane/x", "github.com/jane"),
        *("https://github.com", "https://github.com/", "https://github.com/jane"),
        *("C:\\Users\\jane\\x", "file:///srv/jane/x", "~/x/y", "see jane/x", "git clone"),
        "https://colab.research.google.com/drive/1AbCdEf",
        "https://colab.research.google.com/gist/jane/0123",
        "https://colab.research.google.com/notebooks/intro.ipynb",
        "https://nbviewer.org/gist/jane/0123",
        "https://mybinder.org/v2/zenodo/10.5281/x",
        "https://github.com/orgs/school/repositories",
        "https://github.com/Users/jane/projects",
        "https://github.com/settings/profile",
        "https://github.com/apps/classroom",
        "https://github.com/sponsors/jane",
        "https://github.com/topics/llama",
        "https://github.com/stars/jane/lists/x",
        "https://github.com/features/actions",
        "https://github.com/marketplace/x",
        "https://github.com/enterprises/school",
        "https://github.com/organizations/school/settings",
        "https://github.com/new/import",
        "https://github.com/codespaces/new?repo=1",
        "https://github.com/notifications/beta",
        "https://github.com/login/oauth",
        "https://github.com/search/advanced",
        "https://github.com/collections/x",
        "https://github.com/explore/email",
        "https://github.com/trending/python",
        "https://github.com/about/press",
        "https://github.com/pulls/assigned",
        "https://github.com/issues/assigned",
        "orgs/school",
    ],
)
def test_what_is_no_repository_is_refused_with_what_to_give(text):
    with pytest.raises(CourseError, match="OWNER/NAME") as error:
        addresses.parse(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("https://gitlab.com/jane/x", "gitlab.com"),
        ("gitlab.com/jane/x.git", "gitlab.com"),
        ("git@bitbucket.org:jane/x.git", "bitbucket.org"),
        ("https://huggingface.co/jane/x", "huggingface.co"),
        ("https://gist.github.com/jane/0123", "gist.github.com"),
        ("https://github.com.example.org/jane/x", "github.com.example.org"),
        ("https://jane:secret@git.example.org/jane/x", "git.example.org"),
    ],
)
def test_another_host_is_named_with_the_reason(text, host):
    with pytest.raises(CourseError, match=f"is on {host}; Colab's badges .* GitHub only") as error:
        addresses.parse(text)
    assert "secret" not in str(error.value)


def test_several_repositories_are_named_instead_of_one_being_chosen():
    text = "https://github.com/hans/y, a fork of https://github.com/jane/x"
    with pytest.raises(CourseError, match=r"several repositories .*: hans/y, jane/x; give only"):
        addresses.parse(text)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("(https://github.com/old/a)", "(https://github.com/jane/x)"),
        ("see https://github.com/old/a.", "see https://github.com/jane/x."),
        ("https://github.com/old/a.git.git", "https://github.com/jane/x.git"),
        ("https://github.com/old/a.git/issues", "https://github.com/jane/x/issues"),
        ("https://github.com/Old/A/issues/7", "https://github.com/jane/x/issues/7"),
        ("git+https://github.com/old/a@main", "git+https://github.com/jane/x@main"),
        ("git@github.com:old/a.git", "git@github.com:jane/x.git"),
        (
            "https://raw.githubusercontent.com/old/a/main/y",
            "https://raw.githubusercontent.com/jane/x/main/y",
        ),
        ("https://mybinder.org/v2/gh/old/a/main", "https://mybinder.org/v2/gh/jane/x/main"),
        (
            "git clone https://github.com/old/a && cd a/b",
            "git clone https://github.com/jane/x.git && cd x/b",
        ),
        (
            "git clone nonsense\ncd y\npython3 tools/course.py run",
            "git clone https://github.com/jane/x.git\ncd x\npython3 tools/course.py run",
        ),
        ("repository-code:\n", "repository-code: https://github.com/jane/x\n"),
        ("repository-code: 'old'\r\n", "repository-code: 'https://github.com/jane/x'\r\n"),
        ("  Repository='a' # mine", 'Repository = "https://github.com/jane/x" # mine'),
        (
            "https://colab.research.google.com/github/???/blob/dev/notebooks/00_first.ipynb#a",
            "https://colab.research.google.com/github/jane/x/blob/dev/notebooks/00_first.ipynb#a",
        ),
    ],
)
def test_an_earlier_address_gives_way_to_the_new_one(before, after):
    assert addresses.mended(before, "jane/x", {"old/a"}, ["00_first"]) == after
    assert addresses.mended(after, "jane/x", {"old/a"}, ["00_first"]) == after


@pytest.mark.parametrize(
    "text",
    [
        "https://github.com/old/ab",
        "https://github.com/old/a.github.io",
        "https://github.com/bold/a",
        "https://gitlab.com/old/a",
        "old/a",
        "git clone https://github.com/other/b.git\ncd b",
        "https://colab.research.google.com/github/other/b/blob/main/notebooks/00_other.ipynb",
        # A translation, with notebooks and commands of the same names.
        "https://colab.research.google.com/github/hans/llama-de/blob/main/notebooks/00_first.ipynb",
        "git clone https://github.com/hans/llama-de && cd llama-de && python3 tools/course.py run",
        "git clone https://gitlab.com/hans/b.git\ncd b\npython3 tools/course.py run",
        'Repository = "https://github.com/hans/llama-de"',
        "repository-code: https://gitlab.com/hans/b",
    ],
)
def test_what_is_no_earlier_address_stays(text):
    assert addresses.mended(text, "jane/x", {"old/a"}, ["00_first"]) == text


def test_what_a_file_of_the_courses_own_names_gives_way_in_any_case():
    for host in ("github.com", "gitlab.com"):
        for line in ('Repository = "https://{}"', "repository-code: https://{}"):
            before, after = line.format(f"{host}/hans/b"), line.format("github.com/jane/x")
            assert addresses.mended(before, "jane/x", set(), [], own_file=True) == after


def test_an_address_that_only_a_badge_still_holds_is_known_everywhere():
    badge = "https://colab.research.google.com/github/old/a.git/blob/main/notebooks/00_first.ipynb"
    assert addresses.own(badge, ["00_first"]) == {"old/a"}
    assert addresses.own(badge, ["01_second"]) == set()
