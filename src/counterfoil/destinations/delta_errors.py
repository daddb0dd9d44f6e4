"""What deltalake, a disk and an object store raise, as the interface of destinations has it (D3), in our own words.

deltalake hands on what a store answered as one long text, with addresses, request ids and XML in it. Only what it
means is looked for there; the text itself goes nowhere (promise P6).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from deltalake.exceptions import DeltaError, TableNotFoundError

from counterfoil.destinations.delta_address import TableAddress
from counterfoil.errors import DestinationDown, DestinationError, DestinationRefused

_STORE_FAULTS = (
    (
        ("NoSuchBucket", "ContainerNotFound", "bucket does not exist"),
        "store_no_bucket: the bucket is not there: make it, or see the path of this destination",
    ),
    (
        ("169.254.169.254", "metadata.google.internal", "CredentialsNotLoaded", "no providers in chain"),
        "store_no_credentials: none were found: set them in the environment, or in storage_options",
    ),
    (
        (
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "ExpiredToken",
            "InvalidToken",
            "401 Unauthorized",
            "AuthenticationFailed",
            "credential error",
            "Unauthenticated",
        ),
        "store_credentials: they are not accepted: see the environment, and storage_options",
    ),
    (
        (
            "AccessDenied",
            "403 Forbidden",
            "lacked the necessary privileges",
            "AuthorizationFailure",
            "PermissionDenied",
        ),
        "store_forbidden: the credentials may not read, write, list and delete there: see the store's policies",
    ),
    (
        ("Config error", "Unknown scheme", "Missing region"),
        "store_options: an entry of storage_options, or of the environment, can't be used",
    ),
)
"""What a text holds that somebody must act on, and what to tell; the first that fits."""


@contextmanager
def told(address: TableAddress) -> Iterator[None]:
    """Raise DestinationDown or DestinationRefused in the place of whatever the outside raises."""
    try:
        yield
    except TableNotFoundError as error:
        raise DestinationRefused(f"{address}: there is no table any more: bring it back") from error
    except (DeltaError, OSError) as error:
        problem = problem_of(address, error)
        if address.path is None:
            # Its cause holds the store's own words.
            raise problem from None
        raise problem from error


def problem_of(address: TableAddress, error: Exception) -> DestinationError:
    """What an error of deltalake, the disk or the store means."""
    if address.path is None:
        text = str(error)
        for words, advice in _STORE_FAULTS:
            if any(word in text for word in words):
                return DestinationRefused(f"{address}: {advice}")
    if isinstance(error, DeltaError):
        return DestinationDown(f"{address}: deltalake failed with {type(error).__name__}")
    if address.path is None:
        return DestinationDown(f"{address}: store_unreachable: no answer, or one that can't be used: see the store")
    told_by_system = error.strerror if isinstance(error, OSError) else None
    file = error.filename if isinstance(error, OSError) else None
    return DestinationDown(f"{file or address}: {told_by_system or type(error).__name__}")
