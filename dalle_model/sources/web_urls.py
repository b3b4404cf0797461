"""Which texts are URLs that may be fetched: http and https, with a host, without credentials, of a sane length."""

from yarl import URL

from dalle_model.decoding import Reason
from dalle_model.sources.fetch_failures import Failed

MAX_URL_CHARS = 8000  # RFC 9110, section 4.1: what every server should understand


def parse_url(text: str, base: URL | None = None) -> URL:
    """An absolute http(s) URL without credentials; Failed for anything else."""
    text = text.strip()
    if len(text) > MAX_URL_CHARS:
        raise Failed(Reason.BAD_URL, f"a URL of {len(text)} characters, the limit is {MAX_URL_CHARS}", len(text))
    try:
        url = URL(text) if base is None else base.join(URL(text))
        host = url.host
    except (ValueError, UnicodeError) as error:
        raise Failed(Reason.BAD_URL, f"no URL ({type(error).__name__})") from error
    if url.scheme not in ("http", "https"):
        raise Failed(Reason.BAD_URL, f"scheme {url.scheme[:20] or 'none'!r}; http and https are fetched")
    if not host:
        raise Failed(Reason.BAD_URL, "the URL names no host")
    if url.user is not None or url.password is not None:
        raise Failed(Reason.BAD_URL, "the URL holds credentials, which are not sent")
    return url.with_fragment(None)
