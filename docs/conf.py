"""Sphinx's settings for the documentation, which `make docs` builds without a network.

_site/pages.py has what Sphinx lacks: formulas as MathML, links to files outside docs/, and the
check that every public name has an entry.
"""

import os
import sys
from pathlib import Path

import gravity_core

sys.path.insert(0, str(Path(__file__).parent / "_site"))

project = "Gravity"
author = "The gravity-optimizer developers"
project_copyright = "The gravity-optimizer developers"
version = release = gravity_core.__version__
html_title = f"Gravity {version}"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "pages",
]
# Without intersphinx, the names of other packages have no target. Backticks in a docstring are a
# link where a name of ours is meant, and code otherwise.
nitpicky = True
nitpick_ignore_regex = [("py:obj", ".*"), ("py:.*", r"(?!gravity_(core|torch|jax|tf)\b).*")]
default_role = "py:obj"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

# The code of a page runs in one kernel. The frameworks write their advice to stderr.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 240
nb_output_stderr = "remove"
nb_merge_streams = True
os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the arguments have their ranges in the text
napoleon_use_ivar = True
napoleon_use_rtype = False

html_math_renderer = "mathml"
html_theme = "furo"
html_static_path = ["_site/static"]
html_css_files = ["site.css"]
html_copy_source = False
html_use_index = html_domain_indices = False  # no page leads to them; the search finds names
html_show_sourcelink = False
