"""Whatever happens to a picture on its way, decoding it ends in a picture or a reason, and in the same one every time."""

import io
import random

import pytest
from PIL import Image
from support.bad_images import encoded, photo

from dalle_model.decode_pool import DecodePool
from dalle_model.decoding import Decoded, DecodeSettings, Refused

COUNT = 1500


def whole() -> list[bytes]:
    """One of each format, and of the variants that have decoders of their own."""
    small = [photo(60, 60, seed=n) for n in range(4)]
    found = [encoded(photo(200, 160), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")]
    found += [encoded(small[0], kind, save_all=True, append_images=small[1:]) for kind in ("GIF", "WEBP", "TIFF")]
    found += [encoded(photo(200, 160).convert(mode), "PNG") for mode in ("RGBA", "P", "1", "LA")]
    found += [encoded(photo(200, 160), "TIFF", compression=how) for how in ("tiff_lzw", "jpeg", "tiff_adobe_deflate")]
    return [*found, encoded(photo(200, 160), "JPEG", progressive=True), encoded(photo().convert("CMYK"), "JPEG")]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bits flipped, cut off, the header overwritten, a piece doubled, or a piece replaced by noise."""
    made = bytearray(data)
    at, length = rng.randrange(len(made)), rng.randrange(1, 300)
    match rng.randrange(5):
        case 0:
            for _ in range(rng.randrange(1, 20)):
                made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
        case 1:
            del made[at:]
        case 2:
            for _ in range(8):
                made[rng.randrange(min(len(made), 120))] = rng.choice([0, 127, 128, 255, rng.randrange(256)])
        case 3:
            made[rng.randrange(len(made)) : 0] = made[at : at + length]
        case 4:
            made[at : at + length] = rng.randbytes(length)
    return bytes(made)


@pytest.mark.parametrize("seed", [1])
def test_damage_costs_a_picture_and_never_its_decoder(seed: int) -> None:
    rng, originals = random.Random(seed), whole()
    items = [damaged(rng.choice(originals), rng) for _ in range(COUNT)]

    def run(workers: int, order: list[int]) -> dict[int, Decoded | Refused]:
        with DecodePool[int](DecodeSettings(image_px=64), workers) as pool:
            found = {number: result for number, _, result in pool.map((n, items[n]) for n in order)}
            assert pool.children_lost == 0
        return found

    one = run(1, list(range(COUNT)))
    assert one == run(3, rng.sample(range(COUNT), COUNT)), "neither neighbours nor workers matter"
    kept = [result for result in one.values() if isinstance(result, Decoded)]
    assert len(one) == COUNT
    assert 0.1 < len(kept) / COUNT < 0.6, "some damage is harmless, most is not"
    for result in kept[:200]:
        image = Image.open(io.BytesIO(result.image))
        assert (image.mode, image.size) == ("RGB", (result.width, result.height))
        assert max(image.size) <= 64
