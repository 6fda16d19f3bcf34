"""Content types of static files, by extension: one table, the same on every machine. Source: IANA media types; the registry
`mime-db`, which the platform's tools use."""

from __future__ import annotations

from typing import Final

_TABLE: Final = """
aac audio/aac
apng image/apng
atom application/atom+xml
avi video/x-msvideo
avif image/avif
bin application/octet-stream
bmp image/bmp
br application/octet-stream
bz2 application/x-bzip2
cjs text/javascript
conf text/plain
css text/css
csv text/csv
doc application/msword
docx application/vnd.openxmlformats-officedocument.wordprocessingml.document
eot application/vnd.ms-fontobject
epub application/epub+zip
flac audio/x-flac
geojson application/geo+json
gif image/gif
glb model/gltf-binary
gltf model/gltf+json
gz application/gzip
heic image/heic
heif image/heif
htm text/html
html text/html
ico image/vnd.microsoft.icon
ics text/calendar
ini text/plain
jar application/java-archive
jpeg image/jpeg
jpg image/jpeg
js text/javascript
json application/json
json5 application/json5
jsonld application/ld+json
jsx text/jsx
jxl image/jxl
less text/less
log text/plain
m3u8 application/vnd.apple.mpegurl
m4a audio/mp4
m4v video/x-m4v
manifest text/cache-manifest
map application/json
markdown text/markdown
md text/markdown
mdx text/mdx
mid audio/midi
midi audio/midi
mjs text/javascript
mkv video/x-matroska
mov video/quicktime
mp3 audio/mpeg
mp4 video/mp4
mpeg video/mpeg
mpg video/mpeg
oga audio/ogg
ogg audio/ogg
ogv video/ogg
opus audio/ogg
otf font/otf
pdf application/pdf
png image/png
ppt application/vnd.ms-powerpoint
pptx application/vnd.openxmlformats-officedocument.presentationml.presentation
ps application/postscript
rar application/vnd.rar
rss application/rss+xml
rtf text/rtf
scss text/x-scss
sh application/x-sh
svg image/svg+xml
svgz image/svg+xml
tar application/x-tar
tgz application/gzip
tif image/tiff
tiff image/tiff
toml application/toml
ts video/mp2t
tsv text/tab-separated-values
ttc font/collection
ttf font/ttf
txt text/plain
vtt text/vtt
wasm application/wasm
wav audio/wav
weba audio/webm
webm video/webm
webmanifest application/manifest+json
webp image/webp
woff font/woff
woff2 font/woff2
xhtml application/xhtml+xml
xls application/vnd.ms-excel
xlsx application/vnd.openxmlformats-officedocument.spreadsheetml.sheet
xml text/xml
xsl application/xml
yaml text/yaml
yml text/yaml
zip application/zip
zst application/zstd
7z application/x-7z-compressed
"""

CONTENT_TYPES: Final = dict(line.split(" ", 1) for line in _TABLE.strip().splitlines())
_WITH_CHARSET: Final = frozenset(
    {"application/javascript", "application/json", "application/ld+json", "application/manifest+json", "image/svg+xml"}
)


def content_type_of(name: str) -> str:
    """The type of a file of that name; text is UTF-8."""
    extension = name.rsplit("/", 1)[-1].rpartition(".")[2].lower()
    found = CONTENT_TYPES.get(extension, "application/octet-stream") if "." in name.rsplit("/", 1)[-1] else ""
    found = found or "application/octet-stream"
    return f"{found}; charset=utf-8" if found.startswith("text/") or found in _WITH_CHARSET else found
