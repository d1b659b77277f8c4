"""A corpus of raw requests: heads and framing that servers are known to read differently, and mutants of valid ones."""

import random

HOST = b"Host: x\r\n"
START = b"POST /a HTTP/1.1\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
ABC = b"3\r\nabc\r\n0\r\n\r\n"
N_MUTANTS = 4_000


def cases(text):
    """One case per line, with Python's escapes."""
    return [line.encode().decode("unicode_escape").encode("latin-1") for line in text.splitlines()[1:]]


PLAIN = b"POST /a?b=%%20c HTTP/1.1\r\nHost: x\r\nX-A: b, c\r\n%b\r\n%b"
GET = PLAIN.replace(b"POST", b"GET") % (b"", b"")
VALID = [
    GET,
    GET.replace(b"1.1", b"1.0"),
    b"\r\n" + GET,
    PLAIN % (b"Content-Length: 3\r\n", b"abc"),
    PLAIN % (CHUNKED, ABC),
    PLAIN % (CHUNKED, b"2;a=b\r\nab\r\n1\r\nc\r\n0\r\nX-T: y\r\n\r\n"),
    PLAIN % (b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n", b"abc"),
]

LENGTHS = cases(r"""
3
 3
3\x20
\t3\t
03
+3
-3
0x3
3_0
3.0
3,3
3, 3
3, 4

\x20
3;
\xb3
3\v
\v3
9999999999999999999999999
18446744073709551619
3\0
3\r\n 4
3\nX: y
3\rX: y
\r\n 3""")

CODINGS = cases(r"""
chunked
 chunked\x20
\tchunked\t
Chunked
chunked, chunked
chunked,
,chunked
gzip, chunked
chunked, gzip
identity
identity, chunked
xchunked
chunkedx
chunked;q=1
"chunked"
chunked\v
\vchunked
chunked\0
\0chunked
chunked\xa0
ch\rnked
chu\r\n nked
\r\n chunked
\nchunked

x""")

NAMES = cases(r"""
Transfer-Encoding\x20
 Transfer-Encoding
Transfer-Encoding\t
Transfer_Encoding
Transfer-Encoding\0
X:\rTransfer-Encoding
X: \nTransfer-Encoding
X: y\rTransfer-Encoding
\vTransfer-Encoding
Transfer-Encod\xa0ing

(X)
X Y""")

HOSTS = cases(r"""

Host: x\r\nHost: x\r\n
Host: x\r\nhost: y\r\n
Host:\r\n
Host: \r\n
Host: x y\r\n
Host : x\r\n
 Host: x\r\n
Host: x\r\n y\r\n
X:\r\nHost: x\r\n
Host: x\r\nX:\r\n
Host: x\r\nX:\r\nY: z\r\n
Host\r\n
: x\r\nHost: x\r\n
Host: x, y\r\n""")

LINES = cases(r"""
GET / HTTP/1.1
GET  / HTTP/1.1
GET /  HTTP/1.1
GET / HTTP/1.1\x20
 GET / HTTP/1.1
GET\t/ HTTP/1.1
GET / HTTP/1.2
GET / HTTP/0.9
GET / HTTP/2.0
GET / HTTP/1.10
GET / HTTP/01.1
GET / http/1.1
GET / HTTP/1,1
GET / HTTP/ 1.1
GET /
GET
GET /\x20
get / HTTP/1.1
FOO / HTTP/1.1
POST x HTTP/1.1
POST * HTTP/1.1
OPTIONS * HTTP/1.1
GET http://y/a HTTP/1.1
GET //y/a HTTP/1.1
GET /a#b HTTP/1.1
GET /a?b?c#d HTTP/1.1
GET /a?b?c HTTP/1.1
GET /? HTTP/1.1
GET ?a HTTP/1.1
GET /a;b:c@d HTTP/1.1
GET /a/../b%2f%00 HTTP/1.1
GET /<>"{}|\\^` HTTP/1.1
HEAD / HTTP/1.1
CONNECT x:80 HTTP/1.1
CONNECT / HTTP/1.1
CONNECT * HTTP/1.1
PRI * HTTP/2.0
OPTIONS / RTSP/1.0
DESCRIBE / RTSP/1.0
SOURCE / ICE/1.0
M-SEARCH * HTTP/1.1
PURGE / HTTP/1.1
QUERY / HTTP/1.1
""")

CHUNKS = cases(r"""
3\r\nabc\r\n0\r\n\r\n
03\r\nabc\r\n00\r\n\r\n
3 \r\nabc\r\n0\r\n\r\n
 3\r\nabc\r\n0\r\n\r\n
0x3\r\nabc\r\n0\r\n\r\n
+3\r\nabc\r\n0\r\n\r\n
-3\r\nabc\r\n0\r\n\r\n
3;a=b\r\nabc\r\n0\r\n\r\n
3;a="b;\\"c"\r\nabc\r\n0\r\n\r\n
3;\r\nabc\r\n0\r\n\r\n
3;a\nb\r\nabc\r\n0\r\n\r\n
3;a\rb\r\nabc\r\n0\r\n\r\n
3\nabc\r\n0\r\n\r\n
3\r\nabc\n0\r\n\r\n
3\r\nabc0\r\n\r\n
3\r\nabcXX0\r\n\r\n
3\r\nabc\r\n0\n\r\n
3\r\nabc\r\n0\r\n\n
3\r\nabc\r\n0\r\r\n\r\n
3\r\nabcd\r\n0\r\n\r\n
\r\n3\r\nabc\r\n0\r\n\r\n
\r\n
g\r\n
3g\r\nabc\r\n0\r\n\r\n
3\0\r\nabc\r\n0\r\n\r\n
1_0\r\n0123456789abcdef\r\n0\r\n\r\n
fffffffffffffff\r\n
ffffffffffffffff\r\n
fffffffffffffffff\r\n
10000000000000000\r\nabc\r\n0\r\n\r\n
0000000000000003\r\nabc\r\n0\r\n\r\n
0000000000000000000000003\r\nabc\r\n0\r\n\r\n
0\r\nContent-Length: 9\r\n\r\n
0\r\nHost: y\r\n\r\n
0\r\nX\r\n\r\n
0\r\n X: y\r\n\r\n
0\r\nX : y\r\n\r\n
0\r\nX: y\n\r\n
0\r\nX: y\r\n z\r\n\r\n
0\r\nX:\0\r\n\r\n
0\r\nTransfer-Encoding: chunked\r\n\r\n
0;a\r\n\r\n
A\r\n0123456789\r\n0\r\n\r\n""")

OTHER_HEADERS = cases(r"""
Connection: Upgrade\r\nUpgrade: h2c\r\n
Connection: close, upgrade\r\nUpgrade: x, y\r\n
Connection: x\r\nUpgrade: y\r\n
Connection: upgrade\r\nUpgrade: websocket\r\n
Connection: upgrade\r\n
Connection: close\r\n
Connection: Close\r\n
Connection: keep-alive\r\n
Connection: close, x\r\n
Connection: x\r\nConnection: close\r\n
Proxy-Connection: close\r\n
Expect: 100-continue\r\n
Expect: x\r\n
X:\r\n
X:\r\nY: z\r\n
X: \r\nY:\r\n""")

TOKENS = cases(r"""
\r
\n
\r\n
\0
\x20
\t
:
,
;
\v
\f
\x1f
\x7f
\x85
\xa0
\xff
0
3
-
+
_
/
?
#
%
*
http://y/
HTTP/1.1
Content-Length: 3\r\n
Content-Length: 0\r\n
Transfer-Encoding: chunked\r\n
Transfer-Encoding: x\r\n
Host: y\r\n
Connection: close\r\n
Expect: 100-continue\r\n
Upgrade: x\r\n
chunked
0\r\n\r\n""")


def ambiguous():
    """Heads and framing that servers are known to read differently."""
    lengths = [b"Content-Length:" + one + b"\r\n" for one in LENGTHS]
    codings = [b"Transfer-Encoding:" + one + b"\r\n" for one in CODINGS] + [name + b": chunked\r\n" for name in NAMES]
    for line in [*lengths, *codings, *OTHER_HEADERS]:
        for other in (b"", b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", CHUNKED):
            for body in (b"", b"abc", ABC):
                yield START + HOST + line + other + b"\r\n" + body
                yield START + HOST + other + line + b"\r\n" + body
                yield START.replace(b"1.1", b"1.0") + HOST + line + other + b"\r\n" + body
    for hosts in HOSTS:
        yield from (START.replace(b"1.1", version) + hosts + b"\r\n" for version in (b"1.1", b"1.0"))
    for line in LINES:
        yield from (line + b"\r\n" + HOST + b"\r\n", line + b"\r\n\r\n", line + b"\n" + HOST + b"\n")
    yield from (START + HOST + CHUNKED + b"\r\n" + one for one in CHUNKS)
    for byte in (bytes([code]) for code in range(256)):
        yield START + HOST + b"X: " + byte + b"y\r\n\r\n"
        yield START + HOST + b"X: y" + byte + b"\r\n\r\n"
        yield START + HOST + b"X" + byte + b": y\r\n\r\n"
        yield b"GET /a" + byte + b" HTTP/1.1\r\n" + HOST + b"\r\n"
        yield b"GE" + byte + b" / HTTP/1.1\r\n" + HOST + b"\r\n"
        yield START + HOST + CHUNKED + b"\r\n3" + byte + b"\r\nabc\r\n0\r\n\r\n"
        yield START + HOST + CHUNKED + b"\r\n3\r\nabc" + byte + b"\n0\r\n\r\n"


def mutants():
    """Valid requests with a few bytes inserted, removed, repeated or replaced."""
    rng = random.Random(0)  # noqa: S311
    for _ in range(N_MUTANTS):
        raw = rng.choice(VALID)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            start = rng.randrange(len(raw))
            end = start + rng.choice((0, 0, 1, 2, 5))
            raw = raw[:start] + rng.choice((b"", raw[start:end] * 2, rng.choice(TOKENS))) + raw[end:]
        yield raw


CORPUS = [raw + GET for raw in (*VALID, *ambiguous(), *mutants())]
"""Each with another request behind it, which shows where its body ends."""
