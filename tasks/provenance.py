"""Pictures that say what they are: AI-generated, by which model, from which prompt, seed and settings."""

import html
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo


def encoded(image: NDArray[np.uint8], about: Mapping[str, Any], kind: str = "png") -> bytes:
    """uint8 [H, W, 3] -> PNG or lossless WebP (``kind``) with ``about`` inside.

    PNG has it in text chunks, WebP in an XMP packet with IPTC's term for pictures made by a trained model.
    """
    out = io.BytesIO()
    if kind == "webp":
        Image.fromarray(image).save(out, "WEBP", lossless=True, method=4, xmp=_xmp(about))
        return out.getvalue()
    info = PngInfo()
    info.add_itxt("Software", "dalle-prefect")
    info.add_itxt("Comment", "AI generated")
    info.add_itxt("dalle-prefect", json.dumps(about, sort_keys=True))
    Image.fromarray(image).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def _xmp(about: Mapping[str, Any]) -> bytes:
    said = html.escape(json.dumps(about, sort_keys=True))
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/" '
        'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmp:CreatorTool="dalle-prefect" '
        'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia">'
        f"<dc:description>AI generated</dc:description><dc:source>{said}</dc:source>"
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()
