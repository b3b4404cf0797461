"""Classes of failed fetches: whether another try could help, or whether somebody said no."""

from dalle_model.decoding import Reason

TRANSIENT, PERMANENT, REFUSED = "transient", "permanent", "refused"
FAILURES = {
    **dict.fromkeys((Reason.FETCH_TIMEOUT, Reason.UNREACHABLE, Reason.SERVER_BUSY, Reason.CUT_OFF), TRANSIENT),
    **dict.fromkeys(
        (
            Reason.BAD_URL,
            Reason.HOST_UNKNOWN,
            Reason.TLS_FAILED,
            Reason.HTTP_STATUS,
            Reason.BAD_RESPONSE,
            Reason.TOO_MANY_REDIRECTS,
            Reason.TOO_MANY_BYTES,
        ),
        PERMANENT,
    ),
    **dict.fromkeys((Reason.ADDRESS_REFUSED, Reason.ROBOTS_TXT, Reason.X_ROBOTS_TAG, Reason.TDM_RESERVED), REFUSED),
}
