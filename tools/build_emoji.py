r"""Build keras_ssl/datasets/data/emoji64.zip, the embedded picture set.

The pictures are drawn from SVG icon sets on npm, named and grouped with the labels of
`emoji-datasource`. In any empty folder::

    npm install --ignore-scripts @iconify-json/noto @iconify-json/noto-v1 \
        @iconify-json/fluent-emoji @iconify-json/fluent-emoji-flat \
        @iconify-json/twemoji @iconify-json/emojione emoji-datasource
    pip install resvg-py pillow numpy
    python tools/build_emoji.py --packages node_modules

`npm pack` followed by unpacking works too: `--packages` takes any folder below which each package's
folder is found. Without npm, `--from-npz emoji64.npz --emoji-json emoji.json` packs pictures that
were rendered elsewhere (arrays `image` (N, 64, 64, 4) uint8, `name` and `style`); what each icon
name shows is then read from the file that ships with the package. `--compare-npz` prints where a
build and such a file differ.

How a picture gets its concept. The Unicode code point sequence is the concept. Three of the sets
say which code each icon name stands for; the icon names of all sets together with their aliases
(older names for the same emoji) form one vocabulary, and flags are matched by country name.
Captions, groups and subgroups then come from the code, never from the icon set, so they are the
same in all styles.

File format: a zip archive without any timestamp, holding `index.json` and one lossless WebP sheet a
style (32 pictures of 64 px a row, in the order of the index). The same input gives the same bytes
(given the same Pillow and zlib). Under fully transparent pixels the encoder stores what compresses
best, so a reader has to set their RGB to zero, as the renderer left it; nothing is lost then.
"""

import argparse
import hashlib
import io
import json
import re
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 64
COLUMNS = 32
OUTPUT = Path(__file__).resolve().parent.parent / "keras_ssl/datasets/data/emoji64.zip"

# style -> npm package and the licence its info.json must state. A package whose licence differs
# is refused.
STYLES = {
    "noto": ("@iconify-json/noto", "Apache-2.0"),
    "noto_v1": ("@iconify-json/noto-v1", "Apache-2.0"),
    "fluent": ("@iconify-json/fluent-emoji", "MIT"),
    "fluent_flat": ("@iconify-json/fluent-emoji-flat", "MIT"),
    "twemoji": ("@iconify-json/twemoji", "CC-BY-4.0"),
    "emojione": ("@iconify-json/emojione", "CC-BY-4.0"),
}

GROUPS = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)

SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
# Skin-tone icons whose code no package states. Used only where the code is unknown, since
# "speaker-medium-volume" and "police-car-light" are no skin tones.
SKIN_TONE_NAME = re.compile(
    r"-tone[1-5]\b|-skin-tone|-(dark|light|medium|medium-dark|medium-light)$"
)

# Concepts that emoji-datasource does not list: newer than its Unicode version, private to one
# vendor,
# or components (single letters and digits).
EXTRA = {
    "1f6d8": ("Travel & Places", "place-geographic"),  # landslide
    "1f6d9": ("Travel & Places", "place-building"),  # lighthouse
    "1f9d1-200d-1fa70": ("People & Body", "person-activity"),  # ballet dancer
    "1fa8a": ("Objects", "musical-instrument"),  # trombone
    "1fa8b": ("Travel & Places", "sky & weather"),  # meteor
    "1fa8c": ("Objects", "writing"),  # eraser
    "1fa8d": ("Objects", "tool"),  # net with handle
    "1fa8e": ("Objects", "other-object"),  # treasure chest
    "1fac8": ("People & Body", "person-fantasy"),  # hairy creature
    "1facc": ("Animals & Nature", "animal-bug"),  # monarch butterfly
    "1facd": ("Animals & Nature", "animal-marine"),  # orca
    "1fadd": ("Food & Drink", "food-vegetable"),  # pickle
    "1faea": ("Smileys & Emotion", "face-unwell"),  # distorted face
    "1faeb": ("Smileys & Emotion", "face-unwell"),  # cracking face
    "1faef": ("Smileys & Emotion", "emotion"),  # fight cloud
    "1faf9": ("People & Body", "hand-fingers-closed"),  # leftwards thumb sign
    "1fafa": ("People & Body", "hand-fingers-closed"),  # rightwards thumb sign
    "1f574-200d-2642": ("People & Body", "person-activity"),  # man in suit levitating
    "1f574-200d-2640": ("People & Body", "person-activity"),  # woman in suit levitating
    "20e3": ("Symbols", "keycap"),  # the empty keycap
    "e50a": ("Travel & Places", "place-building"),  # Shibuya 109 department store
    "fe82b": ("Flags", "flag"),  # unknown flag
    **{f"{0x1F1E6 + i:x}": ("Symbols", "alphanum") for i in range(26)},
    **{f"{ord(c):x}": ("Symbols", "keycap") for c in "0123456789*#"},
}

# Icon names without an entry or alias in any package.
NAMES = {
    **{
        f"digit-{word}": f"{0x30 + i:x}"
        for i, word in enumerate(
            ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
        )
    },
    "asterisk": "2a",
    "pound-symbol": "23",
}

# Flags that the sets name differently, as normalised by `country`.
COUNTRIES = {
    "cape verde": "1f1e8-1f1fb",
    "cocos islands": "1f1e8-1f1e8",
    "heard and mcdonald islands": "1f1ed-1f1f2",
    "hong kong": "1f1ed-1f1f0",
    "macau": "1f1f2-1f1f4",
    "myanmar": "1f1f2-1f1f2",
    "swaziland": "1f1f8-1f1ff",
    "turkey": "1f1f9-1f1f7",
    "macedonia": "1f1f2-1f1f0",
    "us outlying islands": "1f1fa-1f1f2",
    "us virgin islands": "1f1fb-1f1ee",
    "black flag": "1f3f4",
    "white flag": "1f3f3",
    "czech republic": "1f1e8-1f1ff",
    "congo kinshasa": "1f1e8-1f1e9",
    "congo brazzaville": "1f1e8-1f1ec",
}

CAPTIONS = {  # where the name's words would not read well
    "20e3": "keycap",
    "e50a": "Shibuya 109 department store",
    "23": "number sign",
    "2a": "asterisk",
    "23-20e3": "keycap number sign",
    "2a-20e3": "keycap asterisk",
    "1f3e9": "love hotel",
    "1f170": "A button (blood type)",
    "1f171": "B button (blood type)",
    "1f18e": "AB button (blood type)",
    "1f17e": "O button (blood type)",
    "1f17f": "P button",
    "24c2": "circled M",
    **{f"{0x30 + i:x}": f"digit {i}" for i in range(10)},
    **{f"{0x1F1E6 + i:x}": f"letter {chr(65 + i)}" for i in range(26)},
}
PROPER_NOUNS = """
africa american americas asia australia christmas claus david europe european ferris fuji hindu
japan japanese latin liberty santa shinto tokyo aries taurus gemini cancer leo virgo libra scorpio
sagittarius capricorn aquarius pisces ophiuchus
"""
WORDS = {
    "mans": "man's",
    "mens": "men's",
    "womans": "woman's",
    "womens": "women's",
    "oclock": "o'clock",
    "mrs": "Mrs.",
    "id": "ID",
    "atm": "ATM",
    "tv": "TV",
    "cl": "CL",
    "ng": "NG",
    "ok": "OK",
    "sos": "SOS",
    "vs": "VS",
    "dna": "DNA",
    "wc": "WC",
    "mx": "Mx.",
    "dvd": "DVD",
    "t-rex": "T-rex",
    "t-shirt": "T-shirt",
    "pinata": "piñata",
    **{word: word.capitalize() for word in PROPER_NOUNS.split()},
}
PHRASES = (  # applied to a caption in this order
    (r"^(man|woman|person):? (.*\b(?:hair|beard))$", r"\1 with \2"),
    (r"^(man|woman|person): bald$", r"bald \1"),
    (r"^mount Fuji", "Mount Fuji"),
    (r"^Tokyo tower", "Tokyo Tower"),
    (r"^statue of", "Statue of"),
    (r"^milky way", "Milky Way"),
    (r"^e mail", "e-mail"),
    (r"^star struck", "star-struck"),
    (r"^non potable", "non-potable"),
    (r"\b(six|eight) (pointed|spoked)", r"\1-\2"),
    (r"Europe Africa", "Europe and Africa"),
    (r"Asia Australia", "Asia and Australia"),
    (r"^up exclamation button", "UP! button"),
    (r"^on exclamation arrow", "ON! arrow"),
    (r"\bcrossed out eyes", "crossed-out eyes"),
)
PLACES_WITH_ARTICLE = re.compile(
    r"^(United|Bahamas|Gambia|Netherlands|Philippines|Maldives|Comoros|Seychelles|Isle|European"
    r"|Dominican|Central|Caribbean|British|U\.S\.|French Southern|Palestinian)"
    r"|^(?!South|Heard).*Islands$"
)


def code_key(unified):
    """Spell a code as all sets agree on: lower case, no leading zero, no variation selector."""
    parts = (p.lower().lstrip("0") for p in unified.split("-"))
    return "-".join(p for p in parts if p != "fe0f")


def country(name):
    """Normalise a flag's name: "flag-for-flag-aland-islands" and "Åland Islands Flag" agree."""
    name = name.lower()
    for old, new in zip("åçéíôãüñ’", "aceioaun ", strict=True):
        name = name.replace(old, new)
    name = re.sub(r"^(flag-for-flag-|flag-for-|flag-)|\sflag$", "", name)
    name = name.replace("&", " and ").replace("sar-china", "").replace("sar china", "")
    name = re.sub(r"\bst\b\.?", "st", re.sub(r"u\.s\.", "us", name))
    name = re.sub(r"\(.*?\)", " ", name)
    return re.sub(r"[^a-z]+", " ", name).replace("cote d ivoire", "cote divoire").strip()


def natural(slug, official):
    """Turn an icon name into words, with the capitals, hyphens and apostrophes of English."""
    official = official.lower().replace("’", "'")
    if re.sub(r"[^a-z0-9]", "", official) == re.sub(r"[^a-z0-9]", "", slug):
        slug = official  # the same words, but with the hyphens that belong there
    else:
        slug = slug.replace("-", " ")
    caption = " ".join(WORDS.get(word, word) for word in slug.split())
    for pattern, replacement in PHRASES:
        caption = re.sub(pattern, replacement, caption)
    return caption


class Labels:
    """What each icon name shows: code, caption, group and subgroup.

    Args:
        datasource: the rows of emoji-datasource's emoji.json.
        chars: {code: icon name} of each package that has one, best names first.
        aliases: {style: {older name: icon name}}, without aliases that transform the picture.
    """

    def __init__(self, datasource, chars, aliases):
        self.rows = {code_key(row["unified"]): row for row in datasource}
        self.aliases = aliases
        self.vocabulary = dict(NAMES)
        self.slugs = {}
        for table in chars:
            for code, name in table.items():
                self.vocabulary.setdefault(name, code_key(code))
                self.slugs.setdefault(code_key(code), name)
        # An alias and its icon are the same emoji; a few rounds follow chains across sets.
        for _ in range(3):
            for table in aliases.values():
                for alias, name in table.items():
                    if name in self.vocabulary:
                        self.vocabulary.setdefault(alias, self.vocabulary[name])
                    elif alias in self.vocabulary:
                        self.vocabulary[name] = self.vocabulary[alias]
        self.countries = dict(COUNTRIES)
        for code, row in self.rows.items():
            if row["category"] == "Flags" and row["subcategory"] != "flag":
                self.countries.setdefault(country(row["name"]), code)

    def code(self, style, name):
        """The code point sequence an icon shows, or None."""
        # Flags first: in Emoji One several territories share one drawing, so aliases
        # would merge their names.
        if name.startswith("flag-") and country(name) in self.countries:
            return self.countries[country(name)]
        code = self.vocabulary.get(name)
        if code is not None and code not in self.rows and style in self.aliases:
            # A drawing older than the gendered sequence it is named after stands for
            # the plain emoji.
            for alias, icon in self.aliases[style].items():
                if icon == name and self.vocabulary.get(alias) in self.rows:
                    return self.vocabulary[alias]
        return code

    def concept(self, code, name):
        """(caption, group, subgroup) of a code; empty strings where unknown."""
        row = self.rows.get(code)
        group, subgroup = (
            (row["category"], row["subcategory"]) if row else EXTRA.get(code, ("", ""))
        )
        if code in CAPTIONS:
            caption = CAPTIONS[code]
        elif row and subgroup in ("country-flag", "subdivision-flag"):
            place = re.sub(r" Flag$| SAR China Flag$", "", row["name"]).replace("’", "'")
            place = place.replace(" - ", "-")
            the = PLACES_WITH_ARTICLE.search(place)
            caption = f"flag of {'the ' if the else ''}{place}"
        else:
            official = row["name"] if row else ""
            caption = natural(self.slugs.get(code, name), official)
        return caption, group, subgroup

    def order(self, code):
        row = self.rows.get(code)
        return (row["sort_order"] if row else 1_000_000, code)


def find_package(root, name):
    """The folder of an npm package below `root`: node_modules, or unpacked from `npm pack`."""
    for manifest in sorted(root.rglob("package.json")):
        if manifest.relative_to(root).parts.count("node_modules") > 1:
            continue  # a package's own dependencies
        if json.loads(manifest.read_text("utf-8")).get("name") == name:
            return manifest.parent
    raise SystemExit(
        f"Package {name} was not found. Run `npm install {name}` in a folder and pass that. "
        f"Received: packages={root}"
    )


def read_json(path):
    return json.loads(path.read_text("utf-8"))


def render(icon, icon_set):
    """Draw one icon as (64, 64, 4) uint8; a picture that is not square is centred."""
    import resvg_py

    box = [
        icon.get(key, icon_set.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    ]
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE}" height="{SIZE}" viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'
    )
    # No system fonts: what is drawn must not depend on the machine.
    png = bytes(
        resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, skip_system_fonts=True)
    )
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def from_packages(root):
    """Read and draw the npm packages. Returns (labels, sources, {style: {icon name: picture}})."""
    folders = {style: find_package(root, package) for style, (package, _) in STYLES.items()}
    sets = {style: read_json(folder / "icons.json") for style, folder in folders.items()}
    chars = [
        read_json(folders[style] / "chars.json") for style in ("noto", "twemoji", "fluent_flat")
    ]
    aliases = {
        style: {
            alias: entry["parent"]
            for alias, entry in icon_set.get("aliases", {}).items()
            if set(entry) == {"parent"}
        }
        for style, icon_set in sets.items()
    }
    datasource = find_package(root, "emoji-datasource")
    labels = Labels(read_json(datasource / "emoji.json"), chars, aliases)
    sources, pictures = {}, {}
    for style, (package, licence) in STYLES.items():
        info = read_json(folders[style] / "info.json")
        if info["license"]["spdx"] != licence:
            raise SystemExit(
                f"{package} is expected under {licence}; read its licence before shipping it. "
                f"Received: {info['license']}"
            )
        sources[style] = {
            "package": package,
            "version": read_json(folders[style] / "package.json")["version"],
            "licence": licence,
            "author": info["author"]["name"],
            "url": info["author"]["url"],
        }
        pictures[style] = {}
        for name, icon in sets[style]["icons"].items():
            # Hidden icons are superseded names and drawings, kept by the packages for old links.
            if icon.get("hidden") or is_skin_tone(name, labels.code(style, name)):
                continue
            pictures[style][name] = render(icon, sets[style])
        print(f"drew {len(pictures[style])} pictures of {package}", flush=True)
    return labels, sources, pictures


NPZ_STYLES = {
    "Noto Emoji": "noto",
    "Noto Emoji (v1)": "noto_v1",
    "Fluent Emoji": "fluent",
    "Fluent Emoji Flat": "fluent_flat",
    "Twitter Emoji": "twemoji",
    "Emoji One (Colored)": "emojione",
}


def read_npz(path):
    """{style: {icon name: picture}} of a rendered .npz, all icons."""
    with np.load(path, allow_pickle=False) as data:
        images, names, styles = data["image"], data["name"], data["style"]
    pictures = {style: {} for style in STYLES}
    for image, name, style in zip(images, names.tolist(), styles.tolist(), strict=True):
        if style in NPZ_STYLES:
            pictures[NPZ_STYLES[style]][name] = image
    return pictures


class KnownLabels:
    """`Labels` as an earlier build recorded them, for a source that has no package files."""

    def __init__(self, path, datasource):
        if not path.exists():
            raise SystemExit(
                "--from-npz needs an earlier build that says what each icon name shows. "
                f"Received: {path}"
            )
        with zipfile.ZipFile(path) as archive:
            index = json.loads(archive.read("index.json"))
        self.rows = {code_key(row["unified"]): row for row in datasource}
        self.concepts = {c["code"]: c for c in index["concepts"]}
        self.codes, self.sources = {}, {}
        keys = ("package", "version", "licence", "author", "url")
        for style in index["styles"]:
            self.sources[style["name"]] = {key: style[key] for key in keys}
            for name, concept in zip(style["icons"], style["concepts"], strict=True):
                self.codes[style["name"], name] = index["concepts"][concept]["code"]

    def code(self, style, name):
        return self.codes.get((style, name))

    def concept(self, code, name):
        concept = self.concepts[code]
        return concept["caption"], concept["group"], concept["subgroup"]

    order = Labels.order


def is_skin_tone(name, code):
    if code is None:
        return bool(SKIN_TONE_NAME.search(name))
    return not SKIN_TONES.isdisjoint(code.split("-"))


def sheet(images):
    """Place (N, 64, 64, 4) pictures on one sheet, 32 a row."""
    rows = -(-len(images) // COLUMNS)
    cells = np.zeros((rows * COLUMNS, SIZE, SIZE, 4), "uint8")
    cells[: len(images)] = images
    cells = cells.reshape(rows, COLUMNS, SIZE, SIZE, 4).transpose(0, 2, 1, 3, 4)
    return cells.reshape(rows * SIZE, COLUMNS * SIZE, 4)


def build(labels, sources, pictures, output):
    """Label, order and pack the pictures; prints what could not be matched."""
    codes = {}  # (style, name) -> code
    for style in STYLES:
        unmatched = []
        for name in pictures[style]:
            code = labels.code(style, name)
            if code is None:
                unmatched.append(name)
                code = f"?{name}"
            codes[style, name] = code
        counts = Counter(codes[style, name] for name in pictures[style])
        double = sorted(code for code, n in counts.items() if n > 1)
        print(
            f"{style}: {len(pictures[style])} pictures, {len(counts)} concepts, "
            f"unmatched {unmatched or 'none'}, drawn twice {double or 'none'}"
        )
    concepts, captions = [], Counter()
    for code in sorted(set(codes.values()), key=labels.order):
        name = next(n for (_, n), c in codes.items() if c == code)
        caption, group, subgroup = (
            (name.replace("-", " "), "", "") if code.startswith("?") else labels.concept(code, name)
        )
        captions[caption] += 1
        concepts.append({"code": code, "caption": caption, "group": group, "subgroup": subgroup})
    number = {concept["code"]: i for i, concept in enumerate(concepts)}
    grouped = sum(concept["group"] in GROUPS for concept in concepts)
    listed = sum(code in labels.rows for code in number)
    print(
        f"{len(concepts)} concepts: {listed} in emoji-datasource, {grouped} with a group; "
        f"captions used twice: {sorted(c for c, n in captions.items() if n > 1) or 'none'}"
    )
    styles, sheets = [], []
    for style in STYLES:
        names = sorted(pictures[style], key=lambda name: (number[codes[style, name]], name))
        images = np.stack([pictures[style][name] for name in names])
        images[images[..., 3] == 0] = 0
        encoded = io.BytesIO()
        Image.fromarray(sheet(images)).save(encoded, "webp", lossless=True, quality=100, method=6)
        sheets.append((f"{style}.webp", encoded.getvalue()))
        styles.append(
            {
                "name": style,
                **sources[style],
                "sha256": hashlib.sha256(images.tobytes()).hexdigest(),
                "icons": names,
                "concepts": [number[codes[style, name]] for name in names],
            }
        )
        print(f"{style}: {len(encoded.getvalue()):,} bytes", flush=True)
    index = {
        "format": 1,
        "size": SIZE,
        "columns": COLUMNS,
        "groups": list(GROUPS),
        "styles": styles,
        "concepts": concepts,
    }
    text = json.dumps(index, ensure_ascii=False, separators=(",", ":")).encode()
    output.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(output, "w") as archive:
        for name, content, method in [
            ("index.json", text, zipfile.ZIP_DEFLATED),
            *((name, content, zipfile.ZIP_STORED) for name, content in sheets),
        ]:
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = method
            archive.writestr(entry, content, compresslevel=9)
    print(f"wrote {output}: {output.stat().st_size:,} bytes, {len(codes)} pictures")


def compare(pictures, other):
    """Print where the drawn pictures and a rendered .npz differ."""
    for style in STYLES:
        common = pictures[style].keys() & other[style].keys()
        missing = sorted(pictures[style].keys() - other[style].keys())
        differ = {
            name: int(np.abs(pictures[style][name].astype(int) - other[style][name]).max())
            for name in sorted(common)
            if not np.array_equal(pictures[style][name], other[style][name])
        }
        print(
            f"{style}: {len(common)} in both, {len(differ)} differ "
            f"{dict(list(differ.items())[:20])}, "
            f"absent from the other {missing or 'none'}"
        )


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--packages", type=Path, metavar="DIR", help="folder with the unpacked npm packages"
    )
    source.add_argument("--from-npz", type=Path, metavar="FILE", help="pictures rendered elsewhere")
    parser.add_argument(
        "--emoji-json", type=Path, help="emoji-datasource's emoji.json, for --from-npz"
    )
    parser.add_argument(
        "--compare-npz", type=Path, help="print how the pictures differ from this file's"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args(argv)
    if args.packages:
        labels, sources, pictures = from_packages(args.packages)
    else:
        if args.emoji_json is None:
            parser.error("--from-npz needs --emoji-json")
        labels = KnownLabels(OUTPUT, read_json(args.emoji_json))
        sources = labels.sources
        pictures = {
            style: {name: image for name, image in images.items() if labels.code(style, name)}
            for style, images in read_npz(args.from_npz).items()
        }
        for style in STYLES:
            absent = [n for s, n in labels.codes if s == style and n not in pictures[style]]
            print(f"{style}: {len(pictures[style])} known pictures, absent {absent or 'none'}")
    if args.compare_npz:
        compare(pictures, read_npz(args.compare_npz))
    build(labels, sources, pictures, args.output)


if __name__ == "__main__":
    sys.exit(main())
