# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Image references, compiled; `_fastpath_py.references` has the same functions and answers in plain Python."""

from zlayer_driver._fastpath.grammar cimport FAULT_ALGORITHM, FAULT_FORM, FAULT_LENGTH, FAULT_NONE, Fault, Parts
from zlayer_driver._fastpath.text cimport canonical_name, checked, directory_name, parse_text, text_of

from zlayer_driver.errors import InvalidReference
from zlayer_driver.model import Reference


cdef str reason_of(str ref, Fault fault, Parts* parts):
    cdef str algorithm
    if fault == FAULT_FORM:
        return "it is not of the form [HOST[:PORT]/]PATH[:TAG][@DIGEST] with PATH in lower case" if ref else "it is empty"
    if fault == FAULT_LENGTH:
        return "its repository is longer than 255 bytes"
    algorithm = text_of(parts.digest).partition(":")[0]
    if fault == FAULT_ALGORITHM:
        return f"digest algorithm {algorithm!r} is not supported"
    return f"a {algorithm} digest has {int(algorithm[3:]) // 4} hex digits"


def sanitize(str ref not None) -> str:
    """The directory name under which ZLayer keeps a natively built image."""
    return directory_name(ref)


def sanitize_many(refs) -> list:
    cdef str ref
    return [directory_name(checked(ref)) for ref in refs]


def parse(str ref not None) -> Reference:
    """The parts of an image reference, by the grammar of the OCI distribution client that ZLayer uses; else `InvalidReference`."""
    cdef Parts parts
    cdef Fault fault = parse_text(ref, &parts)
    if fault != FAULT_NONE:
        raise InvalidReference(ref, reason_of(ref, fault, &parts))
    repository = text_of(parts.repository)
    return Reference(
        text_of(parts.registry), f"library/{repository}" if parts.official else repository, text_of(parts.tag), text_of(parts.digest),
    )


def canonical(str ref not None) -> str:
    """The one spelling of a reference that all caches use; a text that is no reference stays as it is."""
    return canonical_name(ref)


def canonical_many(refs) -> list:
    cdef list found = list(refs)
    cdef Py_ssize_t i
    for i in range(len(found)):
        found[i] = canonical_name(checked(found[i]))
    return found


def cache_keys(str ref not None) -> tuple:
    """The blob cache's keys for an image's manifest, its manifest digest, and its name as typed."""
    name = canonical_name(ref)
    return f"manifest:{name}", f"manifest:digest-{name}", f"manifest-orig:{name}"
