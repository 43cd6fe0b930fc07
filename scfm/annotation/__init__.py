"""What is this cell called? Names from a reference, with honest confidence and a place for what it does not know."""

from scfm.annotation._annotation import Annotation
from scfm.annotation._annotator import Annotator
from scfm.annotation._cells import Reading
from scfm.annotation._core import METHODS
from scfm.annotation._shipped import shipped

__all__ = ["METHODS", "Annotation", "Annotator", "Reading", "shipped"]
