"""How Sphinx builds the site (`course.py site`), from the sources that `build_site.py` lays out."""

import re

import llama_int8
import sync_notebooks

ADDRESS = sync_notebooks.repository_address()

project = "LLaMA in 8 bits"
version = release = llama_int8.__version__
language = "en"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton"]

# Notebooks are shown as they are stored, never executed.
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_merge_streams = True
nb_code_prompt_show = "Show the cell that installs the course where it is missing"
nb_code_prompt_hide = "Hide the cell"
myst_enable_extensions = ["dollarmath", "attrs_inline"]
myst_heading_anchors = 6  # the anchors that GitHub gives to headings
myst_dmath_double_inline = True
myst_fence_as_directive = ["math"]  # GitHub's way to write a formula

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["site.css", "site.js", "mathjax"]
html_favicon = "icon.svg"
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_use_index = False
html_show_sphinx = html_show_copyright = False
html_context = {"default_mode": "auto"}  # dark where the reader's system is
html_theme_options = {
    "repository_url": f"https://github.com/{ADDRESS}",
    "repository_branch": "main",
    "use_repository_button": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "home_page_in_toc": True,
    "navbar_persistent": [],  # a second search field above the page
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "logo": {"text": project},
    "footer_content_items": ["extra-footer"],
    "extra_footer": f"{project}, version {version}. MIT licence.",
}
# SVG, so that no fonts are needed; this one file is all that MathJax loads.
mathjax_path = "tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}}

copybutton_selector = "div.cell_input pre, div.highlight-python pre, div.highlight-bash pre"

autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
toc_object_entries_show_parents = "hide"  # the sidebar is narrow


def as_restructured_text(_app, _what, _name, _object, _options, lines):
    """Docstrings are plain text with `code`: its signs stand for themselves, and code is literal."""
    for number, line in enumerate(lines):
        parts = re.split(r"(`[^`]+`)", line)
        parts[::2] = [re.sub(r"([\\*_|`])", r"\\\1", part) for part in parts[::2]]
        parts[1::2] = [f"`{code}`" for code in parts[1::2]]
        lines[number] = "".join(parts)


def setup(app):
    app.connect("autodoc-process-docstring", as_restructured_text)
