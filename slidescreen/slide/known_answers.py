"""Do the decoders decode? Four tiny images whose pixels are known, and the same tiles by every reader of a scan."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from slidescreen.errors import OpenError, UsageError
from slidescreen.geometry import Box
from slidescreen.slide.opening import open_slide
from slidescreen.slide.readers import READERS
from slidescreen.slide.slide import PixelState

MOST_OFF: Final = 4
"""Grey levels by which JPEG, which loses, may differ anywhere."""
SAMPLES: Final = 9
SAMPLE_PX: Final = 256
SHAPE: Final = (16, 16, 3)
ENCODED: Final[Mapping[str, str]] = {
    "JPEG": (
        "|JeWF01!$>Nk#wx0RR9200961|JwjV009930RaI40RaI40RaI40s#R50RaL50RaL60s;a80s;a90|WyD0|NsB0s{mC0|W#F1Ox&D1qB2I1q1{H1p"
        "nIrLjeH+0RaI40s#R61OoyC1Ox;G1Ox;G1Ox;G1Ox;G1Ox;G1Ox;G1Ox;G1Ox;G1Ox;G1Ox;G1Ox;G1Ox;G1O)%U01*fP5C9MZ0TBQK5di}c0sq7"
        "R761VO0RR910000000000000OH3jf3aAP@im1O@{D0000000000000062N4nzCPid(6*W`;!~hoo0RaI40000000000000003JC`Y|HJ?w5dZ)M1"
        "Oov80000000000000M5V{-^4HA4~=L?r*(01N{G00I#M5dc2`&1oG5hm@+_<XE?41@v%KM;^M)x1uHn20$A5Z-"
        "EW7HXj6Z8Xi)scadV<kRqwYP}u7_-iVk8pnx^<-"
        "vS$EY*J!M3E9<tHZ8dWmCh=L$640&M8FDUA+MJB5Zg0h@JT^CI<LmXw;)9mf}%L})^)uRFcDD%Z1L@_=xv#?|Je"
    ),
    "JPEG 2000": (
        "0000CYEU2`4GM<}0000KW^{RQYH%_j00000YH%_j0000jYH%`W0000MX=r3}0000G0000G00RdH0000001sntY;pkr000005C8xHVQO$PWB*V8Q2"
        ";Lh000005C8xG5C8xG00000000005C8xG5C8xG000000009A0RaaA0S5sA|55-"
        "9000010RaRA00IA800%%oNJvosWB?@q0Yh?SVRU6=AYyqSPjF>!N>D{dAa-SPb7^mGATlmBE;Rp;015yA0002y00IA#&$Pf0+Z{HG0P0aoT1w-"
        "!7$>6u{s~pAt$7#eG&c1hN74Fuzm?K7QKfL4j`q0V0H2@#8ORUSn5`(%;Yjm2+^VJMo2ik*|4~%G(aFf{tTu+UoJcQ&$9O`D2$s&jgBn3aol_y(@"
        "4MHMWlWdfflwv**BZuOyBZ)9)kie8t#j4&Y|$)0O@rBJ5lVf)u9a;n<RRV&X!DUZz<eV>`2&C#DU7GsR}3O$xrO+D!SjZP)D9Qbj;GjK4$^J8h4`"
        "Pt>Ia9^5Em(or`TIR4$^J8jeq}t|Je"
    ),
    "LZW": (
        "fB*mw_!JTc1t0($@R(dG7=QpT;t?o}O@IJT#p5xE)D}Glfx{$F=u}Qk6^O>AQOLx84KI<yW>R>h)>j*xOQq8pjM8a0n}7%n`V|s~MIaCt^qO5Nn1"
        "CQB>J=)DO@Kf@)$28i)fT-+q0=l>>Qzq7RjAgjRm#PFjc>8jZdQ7w*4JCSTdmg{jne6NyMPc2{1y`jg&-"
        "gk_?%uV7=S<@@)<0SO@M$e<?}g=))zg8!Q(Vo>{d@rmB{9`S<J?N4X@GTc3OO<*H@d|Yqi@Qj?-zk+khAe{udL6#UL;b{GMMcn1Emx`W-"
        "HhO@P23_4_@J*B8CV;qyFP?pIIE)#&!UUCzgUjqmaEeqMg3*Vo(pd%fQukJIS;zUT-"
    ),
    "WebP": (
        "Qb|TeUH||9S4BclR!}%hQUCw|FAu;20DmA5Af!nbCt`pE0*T80RGB>gZNP;PBuNr-"
        "kQh)!wha|jP(cM1R8T<$6;x0`1r=0K!S9W5Zbbhh&>8;LqnjrWJyBV{*0YN@2OR"
    ),
}
"""base85 of `answer`, encoded once by the libraries named."""
DECODERS: Final[Mapping[str, Callable[[bytes], Any]]] = {
    "JPEG": imagecodecs.jpeg8_decode,
    "JPEG 2000": imagecodecs.jpeg2k_decode,
    "LZW": lambda data: np.frombuffer(imagecodecs.lzw_decode(data, out=16 * 16 * 3), np.uint8).reshape(SHAPE),
    "WebP": imagecodecs.webp_decode,
}


def answer() -> NDArray[np.uint8]:
    """(16, 16, 3): squares of 4 px, redder to the right, greener downwards."""
    y, x = np.mgrid[0:16, 0:16] // 4 * 4
    return np.stack([x * 16, y * 16, 255 - x * 8 - y * 8], axis=-1).astype(np.uint8)


def decoder_error(name: str, decoders: Mapping[str, Callable[[bytes], Any]] = DECODERS) -> str:
    """What a decoder gets wrong of its known answer; "" for nothing."""
    try:
        pixels = np.asarray(decoders[name](base64.b85decode(ENCODED[name])))
    except Exception as error:  # whatever is wrong is what is to be told
        return f"{type(error).__name__}: {error}"
    if pixels.shape != SHAPE:
        return f"decodes to {pixels.shape} in place of {SHAPE}"
    off = int(np.abs(pixels.astype(int) - answer()).max())
    return f"differs by {off} grey levels" if off > (MOST_OFF if name == "JPEG" else 0) else ""


def require_decoders(decoders: Mapping[str, Callable[[bytes], Any]] = DECODERS) -> None:
    """Raises UsageError when a decoder is broken: a scan would be read, and read wrongly."""
    for name in ENCODED:
        error = decoder_error(name, decoders)
        if error:
            raise UsageError(f"the decoder of {name} is broken ({error}); install imagecodecs anew and run slidescreen doctor")


def compare_readers(path: Path) -> Iterator[tuple[str, str]]:
    """Each reader's name and how far its pixels lie from those of the reader in use, over 9 tiles, or that it opens none."""
    with open_slide(path) as slide:
        width, height = slide.size.width, slide.size.height
        places = [(x, y) for y in (1, 3, 5) for x in (1, 3, 5)]
        boxes = [Box(width * x // 6, height * y // 6, SAMPLE_PX, SAMPLE_PX) for x, y in places][:SAMPLES]
        first = [slide.read_pixels(box) for box in boxes]
        for reader in READERS:
            if reader.name == slide.reader:
                continue
            try:
                with open_slide(path, [reader]) as other:
                    if other.size != slide.size:
                        yield reader.name, f"sees {other.size.width} x {other.size.height} px"
                        continue
                    second = [other.read_pixels(box) for box in boxes]
            except OpenError:
                yield reader.name, "does not open it"
                continue
            off = [
                float(np.abs(a.rgb.astype(int) - b.rgb)[(a.state | b.state) == PixelState.SCANNED].mean())
                for a, b in zip(first, second, strict=True)
                if ((a.state | b.state) == PixelState.SCANNED).any()
            ]
            yield reader.name, f"differs by {max(off):.2f} grey levels at most" if off else "shares no readable tile"
