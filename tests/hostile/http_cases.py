"""More than 200 raw HTTP requests with the status and code of their one response.

A refusal by the protocol is a plain 400; the application's are problems with a code. Every other request has
`Connection: close`, so the response ends with the connection.
"""

import base64
import itertools
import json
import random

from tests.hostile.cases import Case, refused
from tests.service.fakes import picture

IMAGE = picture()
HOST = b"Host: localhost\r\n"
CLOSE = b"Connection: close\r\n"
PATH = b"/classify/paint"
BAD = 400


def head(method, path, *lines):
    return method + b" " + path + b" HTTP/1.1\r\n" + HOST + b"".join(line + b"\r\n" for line in lines)


def whole(path=PATH, body=b"", *lines, method=b"POST"):
    """A complete request."""
    length = b"Content-Length: %d" % len(body)
    return head(method, path, *lines, length) + CLOSE + b"\r\n" + body


def typed(kind, body, path=PATH):
    return whole(path, body, b"Content-Type: " + kind)


REQUEST_LINES = (
    b"", b"GET", b"GET /livez", b"GET /livez HTTP/1", b"GET /livez HTTP/1.1 x", b"GET /livez HTTP/11",
    b"GET /livez http/1.1",
    b"GET /livez HTTP/x.y", b"GET /li vez HTTP/1.1",
    b" GET /livez HTTP/1.1",
    b"GET\t/livez\tHTTP/1.1", b"G\0ET /livez HTTP/1.1", b"G\xffT /livez HTTP/1.1", b"G@T /livez HTTP/1.1",
    b"GET /\0 HTTP/1.1",
    b"GET /\x7f HTTP/1.1", b"GET /\xff\xfe HTTP/1.1", b"GET /livez\x0b HTTP/1.1",
    b"\x16\x03\x01\x02",
    b"(GET) /livez HTTP/1.1", b"GET;x /livez HTTP/1.1", b"\0" * 40,
)  # fmt: skip
HEADER_LINES = (
    b"X-A", b": x", b"X A: 1", b"X-A : 1", b"X-A\t: 1", b"X-\0: 1", b"X-\xff: 1", b"X-A: \0",

    b"X-A: a\rb", b"X-(A): 1", b"X-A[]: 1", b'X-"A": 1', b"X-A/: 1", b"X@A: 1", b"X-A: \x0b", b"=: 1", b"{}: 1",
    b"X,A: 1",
)  # fmt: skip
LENGTHS = (
    (b"Content-Length: -1",), (b"Content-Length: +1",), (b"Content-Length: 0x10",), (b"Content-Length: 1e3",),
    (b"Content-Length: 1.0",), (b"Content-Length: 1 1",), (b"Content-Length: 1,2",), (b"Content-Length: ",),
    (b"Content-Length: \xb2",), (b"Content-Length: 1;",), (b"Content-Length: 4", b"Content-Length: 5"),
    (b"Content-Length: 4, 5",), (b"Content-Length: 99999999999999999999999999",), (b"Content-Length : 4",),
    (b"Content-Length: nan",), (b"Content-Length: 1_0",),
)  # fmt: skip
ENCODINGS = (
    b"gzip", b"identity", b"gzip, chunked", b"chunked, gzip", b"chunked, identity", b"chunked;q=1", b"xchunked",
    b"chunked x",
    b"chunked, chunked", b"\x0bchunked", b'"chunked"', b"", b"chunked,", b"deflate", b"compress", b"chun ked",
    b"trailers",
)  # fmt: skip
CHUNKS = (
    b"x\r\n", b"-1\r\nx\r\n", b"+1\r\nx\r\n", b"0x1\r\nx\r\n", b" 1\r\nx\r\n", b"1 2\r\nx\r\n", b"\r\n", b";\r\n",
    b"1\nx\r\n",
    b"1\r\nxx\r\n", b"2\r\nx\r\n0\r\n\r\n", b"1\r\nx0\r\n\r\n", b"g\r\nx\r\n", b"1.0\r\nx\r\n",
    b"1,\r\nx\r\n",
    b"\xb2\r\nx\r\n", b"1_0\r\nx\r\n", b"1\r\r\nx\r\n", b"f" * 30 + b"\r\nx\r\n", b"1\r\nx\n0\r\n\r\n",
    b"0\r\nX A: 1\r\n\r\n",
    b"0\r\n: x\r\n\r\n", b"0\r\nX-A: \0\r\n\r\n",
)  # fmt: skip
HOSTS = (b"evil.example", b"localhost.evil.example", b"127.0.0.1.evil.example", b"0.0.0.0", b"169.254.169.254",
    b"10.0.0.1",
         b"[::2]", b"localhost:80:80", b"localhost@evil.example", b"evil.example:80", b"a" * 300)  # fmt: skip
STRANGE_HOSTS = (b"localhost/../x", b"localhost?x", b"localhost#x", b"http://localhost", b"localhost,evil.example")
PATHS = (
    b"/nothing", b"//", b"//classify/paint", b"/classify/", b"/classify/paint/", b"/classify/paint/x",
    b"/Classify/paint",
    b"/domains/paint/versions/1/content/x", b"/.", b"/..", b"/../etc/passwd", b"/assets/../../etc/passwd",
    b"/%2e%2e/%2e%2e/etc/passwd",
    b"/assets/..%2f..%2fetc%2fpasswd", b"/assets/%2e%2e%2fpage.html", b"/assets/page.html%00.js",
    b"/%00",
    b"/livez%20", b"/livez;x=1", b"/LIVEZ", b"/livez%0d%0aX:1", b"/metrics/", b"/.git/config",

    b"/static/x", b"/%ff", b"/%c0%af", b"/\\..\\x",
)  # fmt: skip
DOMAINS = (
    b"Paint",
    b"pa_int",
    b"%2e%2e",
    b"paint%00",
    b"paint%0a",
    b"%F0%9F%98%80",
    b"a" * 65,
    b"con",
    b"-",
    b"%ff",
    b"nothing",
)
METHODS = ((b"PUT", PATH), (b"DELETE", PATH), (b"PATCH", PATH), (b"GET", PATH), (b"POST", b"/livez"), (b"DELETE", b"/"),
           (b"TRACE", b"/info"), (b"PROPFIND", b"/domains"), (b"PUT",
           b"/metrics"),
           (b"POST", b"/domains"), (b"PATCH", b"/domains/paint/live"))  # fmt: skip
QUERIES = (
    b"top_k=0", b"top_k=-1", b"top_k=x", b"top_k=1.5", b"top_k=1e3", b"top_k=", b"top_k=" + b"9" * 400,
    b"top_k=1&top_k=x",
    b"threshold=2", b"threshold=-1", b"threshold=nan", b"threshold=inf", b"threshold=x", b"version=0", b"version=-1",
    b"version=x", b"version=9007199254740993", b"timeout_ms=0", b"timeout_ms=x", b"priority=urgent", b"priority=",
    b"stack=x",
    b"abstain=0", b"abstain=1", b"abstain=x", b"return=pixels", b"unknown=1", b"labels=a&labels=a", b"labels=%00",
    b"labels=%ff", b"labels=%ed%a0%80", b"labels=%E2%80%AE", b"labels=" + b"a" * 200, b"labels=a,A", b"top_k=%00",
)  # fmt: skip
TYPES = (b"text/plain", b"application/xml", b"video/mp4", b"application/x-www-form-urlencoded",
    b"multipart/mixed; boundary=x",
         b"image", b"/", b";", b"application/jsonp", b"application/json5",
         b"text/html;image/png")  # fmt: skip
CODINGS = (b"gzip", b"br", b"deflate", b"zstd", b"gzip, identity", b"x")
JSON_BODIES = (
    b"", b" ", b"{", b"[]", b"null", b"1", b'"x"', b"{}", b'{"images": null}', b'{"images": {}}', b'{"images": "x"}',
    b'{"images": []}', b'{"images": [1]}', b'{"images": [{}]}', b'{"images": [[]]}', b'{"images": [null]}',
    b'{"images": [{"b64": 1}]}', b'{"images": [{"url": "http://169.254.169.254/"}]}',
    b'{"images": [{"b64": "", "x": 1}]}',
    b'{"images": [{"b64": ""}], "x": 1}', b'{"images": [{"b64": ""}], "images": []}',
    b'{"images": [{"b64": "", "b64": ""}]}',
    b"[" * 100_000, b'{"images": [' + b"[" * 100_000, b"\xff\xfe{\0}\0",
    b"{'images': []}",
    b'{"images": [{"b64": "AAAA"},]}', b'{"images": [{"b64": NaN}]}', b'{"images": [{"b64": "\\ud800"}]}'[:-1],
)  # fmt: skip
NOT_BASE64 = ("!", "AAA!", "A", "A===", "http://localhost/x.png", "data:text/html;base64,AAAA",
    "data:image/png,AAAA", "\u00e9",
              "AAAA=AAAA", "ftp://x/y", "AA=A", "....")  # fmt: skip
PART = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
FORM = b"multipart/form-data; boundary=x"
FORMS = (
    b"", b"x", b"--x--", b"--x", b"--x\r\n",
    b"--y--\r\n", PART, PART + IMAGE, PART + IMAGE + b"\r\n--x", PART + IMAGE + b"\r\n--x-",
    PART + IMAGE + b"--x--", PART + IMAGE + b"\r\n--y--", b"\r\n" + PART, PART.replace(b"\r\n",
    b"\n") + IMAGE + b"\n--x--\n",
    b"--x\r\n\r\n" + IMAGE + b"\r\n--x--", b"--x\r\nContent-Disposition: form-data\r\n\r\nz\r\n--x--",
    b'--x\r\nContent-Disposition: form-data; name="images"\r\n\r\nz\r\n--x--',  # a field, not a file
    PART.replace(b'"images"', b'"image"') + IMAGE + b"\r\n--x--", PART.replace(b"Content",
    b"Con\0tent") + b"z\r\n--x--",
    PART.replace(b"\r\n\r\n", b"\r\nX" * 5_000 + b"\r\n\r\n") + b"z\r\n--x--", PART.replace(b"name=",
    b"x=") + b"z\r\n--x--",
)  # fmt: skip
BOUNDARIES = (b"multipart/form-data", b"multipart/form-data; boundary=", b"multipart/form-data; boundary=y",
              b"multipart/form-data; boundary=\xff", b"multipart/form-data; boundary=" + b"y" * 300)  # fmt: skip


def chunked(chunks):
    return head(b"POST", PATH, b"Content-Type: image/png", b"Transfer-Encoding: chunked") + CLOSE + b"\r\n" + chunks


def smuggled(lines):
    """A body that is a request of its own to a parser that reads the length differently."""
    inner = b"0\r\n\r\nGET /metrics HTTP/1.1\r\n" + HOST + b"\r\n"
    return head(b"POST", PATH, *lines) + b"\r\n" + inner


def in_json(text):
    return typed(b"application/json", json.dumps({"images": [{"b64": text}]}).encode())


def too_many():
    encoded = base64.b64encode(IMAGE).decode()
    yield typed(b"application/json", json.dumps({"images": [{"b64": encoded}] * 17}).encode())
    yield typed(FORM, (PART + IMAGE + b"\r\n") * 17 + b"--x--\r\n")


def refused_requests(seed=0):
    """The corpus of requests that must be refused."""
    rng = random.Random(seed)  # noqa: S311
    invalid = "request_invalid"
    return [
        *refused("request line", (line + b"\r\n" + HOST + b"\r\n" for line in REQUEST_LINES), BAD),
        *refused("header line", (head(b"GET", b"/livez", line) + b"\r\n" for line in HEADER_LINES), BAD),
        *refused("large head", (head(b"GET", b"/livez", b"X-A: " + b"a" * n) for n in (600_000, 2_000_000)), BAD),
        *refused("many headers", [head(b"GET", b"/livez", *[b"X-%d: 1" % n for n in range(60_000)])], BAD),
        *refused("length", (smuggled(lines) for lines in LENGTHS), BAD),
        *refused("transfer encoding", (smuggled([b"Transfer-Encoding: " + value]) for value in ENCODINGS), BAD),
        *refused("chunk", map(chunked, CHUNKS), BAD),
        *refused("unknown method", (whole(b"/info", method=name) for name in (b"CONNECT", b"X" * 60, b"get")), BAD),
        *refused("bare line feed", [whole(PATH, IMAGE).replace(b"\r\n", b"\n", n) for n in (1, 2, 3)], BAD),
        *refused("no host", [b"GET /livez HTTP/1.1\r\n\r\n", head(b"GET", b"/livez",
        b"Host: localhost") + b"\r\n"], BAD),
        *refused("foreign host", (b"GET /info HTTP/1.1\r\nHost: " + host + b"\r\n" + CLOSE + b"\r\n" for host in HOSTS),
                 403, "foreign_request"),
        *refused("strange host", (b"GET /info HTTP/1.1\r\nHost: " + host + b"\r\n" + CLOSE + b"\r\n"
                                  for host in STRANGE_HOSTS), 403, "foreign_request"),
        *refused("foreign origin", (whole(b"/info", b"", b"Origin: " + origin, method=b"GET") for origin in
                                    (b"http://evil.example", b"null", b"x", b"http://localhost.evil.example")),
                 403, "foreign_request"),
        *refused("path", (whole(path, method=b"GET") for path in PATHS), 404, "not_found"),
        *refused("domain", (whole(b"/classify/" + name, IMAGE, b"Content-Type: image/png") for name in DOMAINS),
                 404, "domain_not_found"),
        *refused("method", (whole(path, method=method) for method, path in METHODS), 405, "method_not_allowed"),
        *refused("query", (whole(PATH + b"?" + query, IMAGE, b"Content-Type: image/png") for query in QUERIES),
                 422, invalid, "label_invalid"),
        *refused("content type", (typed(kind, IMAGE) for kind in TYPES), 415, "unsupported_media"),
        *refused("content encoding", (whole(PATH, IMAGE, b"Content-Encoding: " + coding) for coding in CODINGS),
                 415, "unsupported_media"),
        *refused("JSON", (typed(b"application/json", body) for body in JSON_BODIES), 422, invalid),
        *refused("base64", map(in_json, NOT_BASE64), 422, "image_base64"),
        *refused("multipart", (typed(FORM, body) for body in FORMS), 422, invalid),
        *refused("boundary", (typed(kind, PART + IMAGE + b"\r\n--x--\r\n") for kind in BOUNDARIES), 422, invalid),
        *refused("too many images", too_many(), 413, "too_many_images"),
        *refused("large body", [head(b"POST", PATH, b"Content-Length: %d" % n) + CLOSE + b"\r\n" for n in
                                (2**25 + 1, 2**31, 2**63)], 413, "too_large"),
        *refused("noise", (bytes(rng.randbytes(60)) + b"\r\n\r\n" for _ in range(20)), BAD),
    ]  # fmt: skip


def answered_requests():
    """Unusual requests within the rules."""
    image = b"Content-Type: image/png"
    lines = itertools.chain(
        ([b"X-%d: 1" % n for n in range(60)], [b"X-A: " + b"a" * 8_000], [b"X-A:1"], [b"X-A:\t1 "], [b"X-A: \xe9"]),
        ([b"Connection: Upgrade", b"Upgrade: h2c"], [b"Accept: */*" * 20], [b"Expect: nothing"]),
    )
    requests = [
        *(whole(PATH, IMAGE, image, *extra) for extra in lines),
        chunked(b"".join(b"%X;x=y\r\n%s\r\n" % (1, IMAGE[at : at + 1]) for at in range(len(IMAGE))) + b"0\r\n\r\n"),
        chunked(b"%x\r\n%s\r\n0\r\nX-A: 1\r\n\r\n" % (len(IMAGE), IMAGE)),
        whole(PATH, IMAGE),
        typed(b"image/made-up", IMAGE),
        typed(b"IMAGE/PNG", IMAGE),
        typed(FORM, PART + IMAGE + b"\r\n--x--\r\nepilogue"),
        typed(b'multipart/form-data; boundary="x"', PART + IMAGE + b"\r\n--x--"),
        whole(PATH + b"?top_k=1&labels=red,caf%C3%A9&threshold=0.0&", IMAGE, image),
        whole(b"/domains/paint?", method=b"GET"),
    ]
    return [Case(f"answered {number}", data, 200) for number, data in enumerate(requests)]
