"""Why a connection could not be made or used, in words."""

from http.client import HTTPException, IncompleteRead


def cause_of(error: BaseException) -> str:
    """Message of the first error of a chain, such as "Connection refused"; those that it led to quote each other."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    match error:
        case IncompleteRead():
            return "the connection ended within an answer"
        case HTTPException():
            return "what listens there does not speak HTTP; if it speaks TLS, the address begins with https://"
        case OSError(strerror=str(reason)):
            return reason
        case _:
            return str(error)
