import base64
import contextlib
import email.utils
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.caption_answer import SCHEMA, AnswerError
from models.caption_request import REMINDER
from models.errors import UserError
from models.openai_server import LONGEST_WAIT_S, CaptionServerError, OpenAIServer, Pace
from models.protocols import ClipCaption, Keyframe
from models.registry import backend_config, build, fingerprint

KEY = "sk-very-secret-0123456789"


def completion(*words: str, caption: str = "A scene.", finish: str = "stop") -> str:
    return chat(json.dumps({"caption": caption, "subjects": [{"word": word} for word in words]}), finish)


def chat(answer: str | None, finish: str = "stop") -> str:
    return json.dumps(
        {"choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": answer}}]}
    )


@dataclass
class Reply:
    """What the server does with a request."""

    body: str = field(default_factory=lambda: completion("dog"))
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """Bytes of the body after which it closes the connection."""
    before: Callable[[], object] = lambda: None


@dataclass
class Server:
    """A server on this machine that replies as told, in the order of the requests, and then with a dog."""

    url: str
    replies: list[Reply | Callable[[dict[str, Any]], Reply]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    always: Callable[[dict[str, Any]], Reply] = lambda _: Reply()


@pytest.fixture
def server() -> Iterator[Server]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                state.requests.append(request)
                state.paths.append(self.path)
                state.keys.append(self.headers["Authorization"])
                reply = state.replies.pop(0) if state.replies else state.always
            if not isinstance(reply, Reply):
                reply = reply(request)
            reply.before()
            content = reply.body.encode()
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(content)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: reply.cut])

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client that has hung up is what some tests are about."""

    with Quiet(("127.0.0.1", 0), Handler) as running:
        state = Server(f"http://127.0.0.1:{running.server_address[1]}/v1")
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        running.shutdown()
        thread.join()


@pytest.fixture
def captioner_of(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[OpenAIServer, list[float]]]:
    """A client of the server, and the seconds that it waits, which pass at once."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def captioner(**options: Any) -> tuple[OpenAIServer, list[float]]:
        options = {"model": "owner/vlm", "url": server.url, "attempts": 3, **options}
        built: OpenAIServer = build(
            "captioner", backend_config("captioner", {"backend": "openai_server", **options}), tmp_path
        )
        waits: list[float] = []
        built._sleep = waits.append
        return built, waits

    return captioner


def clip(seed: int, frames: int = 2, height: int = 30, width: int = 40) -> list[Keyframe]:
    picture = np.full((height, width, 3), (250, 10 * seed, 0), np.uint8)
    return [Keyframe(3.0 + number / 2, picture, picture) for number in range(frames)]


def seed_of(request: dict[str, Any]) -> int:
    """Which clip a request is about."""
    return round(pictures(request)[0][0, 0, 1] / 10)


def pictures(request: dict[str, Any]) -> list[Any]:
    """The pictures of a request in RGB."""
    urls = [part["image_url"]["url"] for part in request["messages"][0]["content"] if part["type"] == "image_url"]
    assert all(url.startswith("data:image/jpeg;base64,") for url in urls)
    files = [base64.b64decode(url.partition(",")[2], validate=True) for url in urls]
    assert all(file[:3] == b"\xff\xd8\xff" for file in files)
    decoded = [cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR) for file in files]
    return [cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) for picture in decoded]


def texts(request: dict[str, Any]) -> list[str]:
    return [part["text"] for part in request["messages"][0]["content"] if part["type"] == "text"]


DOG = ClipCaption("A scene.", ("dog",))


def test_a_clip_is_one_request_that_says_all(server: Server, captioner_of: Any) -> None:
    captioner, waits = captioner_of(max_tokens=99, seed=5, max_subjects=4)
    server.replies = [Reply(completion("Dogs", "axolotl", "sky", caption="Ein Hündchen."))]
    assert captioner.caption([clip(1, 3)]) == [ClipCaption("Ein Hündchen.", ("dog", "axolotl"))]
    (request,) = server.requests
    content = request.pop("messages")
    assert request == {
        "model": "owner/vlm",
        "max_tokens": 99,
        "temperature": 0,
        "seed": 5,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "caption", "strict": True, "schema": SCHEMA},
        },
    }
    (message,) = content
    assert message["role"] == "user"
    assert [part["type"] for part in message["content"]] == [*["text", "image_url"] * 3, "text"]
    assert texts({"messages": content}) == ["0.0 s:", "0.5 s:", "1.0 s:", captioner._config.question()]
    assert server.paths == ["/v1/chat/completions"]
    assert waits == []


@pytest.mark.parametrize(
    ("choice", "sent"), [("json_object", {"response_format": {"type": "json_object"}}), ("none", {})]
)
def test_the_format_of_answers_is_asked_for_as_configured(
    server: Server, captioner_of: Any, choice: str, sent: dict[str, Any]
) -> None:
    captioner_of(response_format=choice)[0].caption([clip(1)])
    assert {key: value for key, value in server.requests[0].items() if key == "response_format"} == sent


def test_pictures_arrive_as_jpeg_of_bounded_size_in_their_colours(server: Server, captioner_of: Any) -> None:
    captioner, _ = captioner_of(max_side=64, frames=2, concurrency=1)
    captioner.caption([clip(5, 5, 90, 160), clip(6, 1, 300, 100), clip(7, 2, 20, 30)])
    arrived = [pictures(request) for request in server.requests]
    assert [[picture.shape for picture in each] for each in arrived] == [
        [(36, 64, 3)] * 2,
        [(64, 21, 3)],
        [(20, 30, 3)] * 2,
    ]
    for seed, each in zip((5, 6, 7), arrived, strict=True):
        assert all(np.abs(picture.astype(int) - (250, 10 * seed, 0)).max() < 8 for picture in each)


def test_quality_decides_how_large_pictures_are(server: Server, captioner_of: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for quality in (20, 95):
        captioner_of(jpeg_quality=quality)[0].caption([[Keyframe(0.0, noise, noise)]])
    small, large = (len(json.dumps(request)) for request in server.requests)
    assert small < large / 2


def test_the_key_is_sent(server: Server, captioner_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", f"{KEY}-other\n")
    captioner_of()[0].caption([clip(1)])
    captioner_of(api_key_env="OTHER_KEY")[0].caption([clip(1)])
    captioner_of(api_key_env="NO_KEY_AT_ALL")[0].caption([clip(1)])
    assert server.keys == [f"Bearer {KEY}", f"Bearer {KEY}-other", None]


@pytest.mark.parametrize("status", [401, 500, 200])
def test_the_key_is_in_no_error_even_if_the_server_repeats_it(server: Server, captioner_of: Any, status: int) -> None:
    # Long enough before the key that the excerpt ends inside it.
    for before in ("", "x" * 140):
        server.always = lambda _, before=before: Reply(f"{before} Incorrect API key: {KEY}.", status)  # type: ignore[misc]
        with pytest.raises(CaptionServerError) as caught:
            captioner_of()[0].caption([clip(1)])
        assert "sk-" not in str(caught.value)


def test_a_key_that_no_header_can_hold_is_refused_unseen(captioner_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (f"{KEY}\nX: y", f"{KEY}\N{EM DASH}"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(CaptionServerError, match="OPENAI_API_KEY") as caught:
            captioner_of()
        assert KEY not in str(caught.value)


def test_requests_are_under_way_together(server: Server, captioner_of: Any) -> None:
    # Nobody gets an answer before four have asked.
    barrier = threading.Barrier(4, timeout=20)
    server.always = lambda request: Reply(
        completion(["cat", "car", "bus", "cup"][seed_of(request)]), before=barrier.wait
    )
    captioner, _ = captioner_of(concurrency=4)
    found = captioner.caption([clip(seed) for seed in range(4)])
    assert [caption.words for caption in found] == [("cat",), ("car",), ("bus",), ("cup",)]
    assert not barrier.broken


def test_no_more_requests_are_under_way_than_allowed(server: Server, captioner_of: Any) -> None:
    busy, most, lock = 0, 0, threading.Lock()

    def slowly(_: dict[str, Any]) -> Reply:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.02)
        with lock:
            busy -= 1
        return Reply()

    server.always = slowly
    captioner_of(concurrency=2)[0].caption([clip(seed) for seed in range(8)])
    assert most <= 2
    assert len(server.requests) == 8


def test_a_pace_spaces_requests_evenly_and_catches_up_with_nothing() -> None:
    now, waits = 100.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        waits.append(seconds)
        now += seconds

    pace = Pace(30, lambda: now, sleep)
    for idle in (0, 0, 0.5, 7, 0):
        now += idle
        pace.wait()
    assert waits == [2, 1.5, 2]


def test_without_a_limit_nothing_waits() -> None:
    pace = Pace(None, lambda: 0.0, lambda _: pytest.fail("waited"))
    for _ in range(3):
        pace.wait()


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20), st.floats(1, 600))
def test_a_pace_is_never_exceeded(idle: list[float], per_minute: float) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    pace = Pace(per_minute, lambda: now, sleep)
    gone = []
    for seconds in idle:
        now += seconds
        pace.wait()
        gone.append(now)
    assert all(later - earlier > 60 / per_minute - 1e-6 for earlier, later in itertools.pairwise(gone))


def test_every_attempt_keeps_the_pace(server: Server, captioner_of: Any) -> None:
    captioner, _ = captioner_of(requests_per_minute=60, concurrency=1)
    turns: list[float] = []
    captioner._pace = Pace(60, lambda: 0.0, turns.append)
    server.replies = [Reply(status=500), Reply(chat("No JSON."))]
    captioner.caption([clip(1), clip(2)])
    assert len(server.requests) == 4
    assert turns == [1.0, 2.0, 3.0]


def test_a_server_that_stalls_is_given_up_and_tried_again(server: Server, captioner_of: Any) -> None:
    over = threading.Event()
    server.replies = [Reply(before=lambda: over.wait(20))]
    captioner, waits = captioner_of(timeout_s=0.5)
    assert captioner.caption([clip(1)]) == [DOG]
    assert waits[:1] == [1.0]
    server.always = lambda _: Reply(before=lambda: over.wait(20))
    captioner, waits = captioner_of(timeout_s=0.1, attempts=2)
    with pytest.raises(CaptionServerError, match=r"no answer within 0\.1 s .attempt 2 of 2.; raise timeout_s"):
        captioner.caption([clip(1)])
    assert waits == [1.0]
    over.set()


def test_a_server_that_trickles_is_given_up_too(captioner_of: Any) -> None:
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def trickle() -> None:
            peer, _ = listening.accept()
            with peer, contextlib.suppress(OSError):
                peer.recv(65536)
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not over.wait(0.05):
                    peer.sendall(b"x")

        thread = threading.Thread(target=trickle)
        thread.start()
        port = listening.getsockname()[1]
        captioner, _ = captioner_of(url=f"http://127.0.0.1:{port}", timeout_s=0.4, attempts=1)
        with pytest.raises(CaptionServerError, match="no answer within"):
            captioner.caption([clip(1)])
        over.set()
        thread.join()


@pytest.mark.parametrize(
    ("told", "waited"), [("0.25", 0.25), ("7", 7), ("0", 0), ("-3", 0), ("", 1), ("soon", 1), ("nan", 0)]
)
def test_a_server_that_limits_the_rate_is_waited_for_as_it_asks(
    server: Server, captioner_of: Any, told: str, waited: float
) -> None:
    server.replies = [Reply("slow down", 429, {"Retry-After": told})]
    captioner, waits = captioner_of()
    assert captioner.caption([clip(1)]) == [DOG]
    assert waits == [waited]


def test_a_server_may_ask_to_wait_until_a_time(server: Server, captioner_of: Any) -> None:
    server.replies = [Reply("", 503, {"Retry-After": email.utils.formatdate(time.time() + 30, usegmt=True)})]
    captioner, waits = captioner_of()
    assert captioner.caption([clip(1)]) == [DOG]
    assert 0 < waits[0] <= 30


def test_a_server_that_asks_to_wait_for_an_hour_has_failed(server: Server, captioner_of: Any) -> None:
    server.replies = [Reply("quota", 429, {"Retry-After": "3600"})]
    captioner, waits = captioner_of()
    with pytest.raises(CaptionServerError, match=r"status 429: 'quota'; it asks to wait 3600 s; .*requests_per_minute"):
        captioner.caption([clip(1)])
    assert waits == []


def test_a_server_that_stays_busy_is_an_error(server: Server, captioner_of: Any) -> None:
    server.always = lambda _: Reply("slow down", 429)
    captioner, waits = captioner_of(attempts=4)
    with pytest.raises(CaptionServerError, match=r"status 429: 'slow down' .attempt 4 of 4.; ask for less"):
        captioner.caption([clip(1)])
    assert waits == [1, 2, 4]


def test_waits_double_up_to_a_limit(server: Server, captioner_of: Any) -> None:
    server.always = lambda _: Reply(status=500)
    captioner, waits = captioner_of(attempts=9)
    with pytest.raises(CaptionServerError):
        captioner.caption([clip(1)])
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert max(waits) == LONGEST_WAIT_S


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_a_server_s_own_errors_are_tried_again(server: Server, captioner_of: Any, status: int) -> None:
    server.replies = [Reply("oh no", status)] * 2
    captioner, waits = captioner_of()
    assert captioner.caption([clip(1)]) == [DOG]
    assert waits == [1, 2]
    server.replies = [Reply("oh no", status)] * 3
    with pytest.raises(CaptionServerError, match=rf"{server.url}/chat/completions: status {status}: 'oh no'"):
        captioner.caption([clip(1)])
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (301, "the server's log says more"),
        (400, "response_format"),
        (401, "environment variable OPENAI_API_KEY"),
        (403, "environment variable OPENAI_API_KEY"),
        (404, "does it serve the model 'owner/vlm'"),
        (413, "lower frames"),
        (422, "the server's log says more"),
    ],
)
def test_a_refused_request_is_not_sent_again(server: Server, captioner_of: Any, status: int, advice: str) -> None:
    server.replies = [Reply('{"error": "no"}', status, {"Location": f"{server.url}/else"})]
    captioner, waits = captioner_of()
    with pytest.raises(CaptionServerError, match=f"status {status}: '.*error.*no.*'; .*{advice}") as caught:
        captioner.caption([clip(1)])
    assert len(server.requests) == 1
    assert waits == []
    assert isinstance(caught.value, UserError)


def test_a_connection_that_closes_inside_the_answer_is_tried_again(server: Server, captioner_of: Any) -> None:
    server.replies = [Reply(cut=0), Reply(cut=25)]
    captioner, waits = captioner_of()
    assert captioner.caption([clip(1)]) == [DOG]
    assert waits == [1, 2]
    server.replies = [Reply(cut=25)] * 3
    with pytest.raises(CaptionServerError, match=r"IncompleteRead.*attempt 3 of 3.*is the server up"):
        captioner.caption([clip(1)])


def test_an_answer_in_chunks_is_put_together(captioner_of: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def chunked() -> None:
            peer, _ = listening.accept()
            with peer, peer.makefile("rb") as read:
                size = 0
                while line := read.readline().strip():
                    if line.lower().startswith(b"content-length"):
                        size = int(line.split(b":")[1])
                read.read(size)
                peer.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                body = completion("dog").encode()
                for part in (body[:7], body[7:]):
                    peer.sendall(b"%x\r\n%s\r\n" % (len(part), part))
                peer.sendall(b"0\r\n\r\n")

        thread = threading.Thread(target=chunked)
        thread.start()
        captioner, _ = captioner_of(url=f"http://127.0.0.1:{listening.getsockname()[1]}", attempts=1)
        assert captioner.caption([clip(1)]) == [DOG]
        thread.join()


def test_what_is_not_http_is_an_error_without_the_key_it_may_repeat(captioner_of: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def parrot() -> None:
            peer, _ = listening.accept()
            with peer, contextlib.suppress(OSError):
                while KEY.encode() not in peer.recv(65536):
                    pass
                peer.sendall(f"Bearer {KEY}\r\n".encode())

        thread = threading.Thread(target=parrot)
        thread.start()
        captioner, _ = captioner_of(url=f"http://127.0.0.1:{listening.getsockname()[1]}", attempts=1)
        with pytest.raises(CaptionServerError, match=r"BadStatusLine: Bearer \*\*\*|ConnectionReset") as caught:
            captioner.caption([clip(1)])
        assert KEY not in str(caught.value)
        thread.join()


def test_a_server_that_is_dead_is_named(captioner_of: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    captioner, waits = captioner_of(url=url)
    with pytest.raises(
        CaptionServerError, match=rf"{url}/chat/completions: ConnectionRefusedError: .*is the server up"
    ):
        captioner.caption([clip(1)])
    assert waits == [1, 2]


@pytest.mark.parametrize(
    "body", ["<html>", "[]", "{}", '{"choices": []}', '{"choices": [{"text": "a"}]}', "[" * 100_000]
)
def test_what_is_no_chat_completion_is_tried_again(server: Server, captioner_of: Any, body: str) -> None:
    server.replies = [Reply(body)]
    captioner, waits = captioner_of()
    assert captioner.caption([clip(1)]) == [DOG]
    assert waits == [1]
    server.always = lambda _: Reply(body)
    with pytest.raises(CaptionServerError, match=r"status 200, but no chat completion: .*ending in /v1"):
        captioner.caption([clip(1)])


@pytest.mark.parametrize("answer", ["A dog!", '{"caption": "A d', "", None])
def test_broken_json_is_asked_for_again_with_a_firmer_note(
    server: Server, captioner_of: Any, answer: str | None
) -> None:
    server.replies = [Reply(chat(answer)), Reply(chat(answer))]
    captioner, waits = captioner_of(retries=2)
    assert captioner.caption([clip(1)]) == [DOG]
    assert [REMINDER in texts(request)[-1] for request in server.requests] == [False, True, True]
    assert waits == []


def test_an_answer_that_never_fits_is_named_with_its_clip(server: Server, captioner_of: Any) -> None:
    server.always = lambda request: Reply(chat("No clue.") if seed_of(request) == 2 else completion("dog"))
    with pytest.raises(AnswerError, match=rf"{server.url}: owner/vlm: clip 3 of 4: .*'No clue\.'"):
        captioner_of()[0].caption([clip(seed) for seed in range(4)])
    assert len(server.requests) == 5


def test_an_answer_that_was_cut_off_says_so(server: Server, captioner_of: Any) -> None:
    server.always = lambda _: Reply(chat('{"caption": "A dog', "length"))
    with pytest.raises(AnswerError, match="cut off: max_tokens is 77"):
        captioner_of(max_tokens=77)[0].caption([clip(1)])


def test_what_was_answered_is_not_paid_for_again_when_the_batch_comes_clip_by_clip(
    server: Server, captioner_of: Any
) -> None:
    broken = True

    def answer(request: dict[str, Any]) -> Reply:
        return Reply("oh no", 400) if seed_of(request) == 1 and broken else Reply(completion("cat"))

    server.always = answer
    captioner, _ = captioner_of()
    clips = [clip(seed) for seed in range(4)]
    with pytest.raises(CaptionServerError, match="status 400"):
        captioner.caption(clips)
    paid = len(server.requests)
    assert paid == 4
    for number in (0, 2, 3):
        assert captioner.caption([clips[number]]) == [ClipCaption("A scene.", ("cat",))]
    assert len(server.requests) == paid
    with pytest.raises(CaptionServerError, match="status 400"):
        captioner.caption([clips[1]])
    broken = False
    assert captioner.caption([clips[1]]) == [ClipCaption("A scene.", ("cat",))]
    assert [seed_of(request) for request in server.requests[paid:]] == [1, 1]


def test_only_the_last_batch_is_remembered(server: Server, captioner_of: Any) -> None:
    captioner, _ = captioner_of()
    captioner.caption([clip(0), clip(1)])
    captioner.caption([clip(2), clip(3)])
    captioner.caption([clip(3)])
    assert len(server.requests) == 4
    captioner.caption([clip(0)])
    assert len(server.requests) == 5


def test_no_clips_ask_nothing(server: Server, captioner_of: Any) -> None:
    captioner, _ = captioner_of()
    assert captioner.caption([]) == []
    with pytest.raises(ValueError, match="without keyframes"):
        captioner.caption([[]])
    assert server.requests == []


def test_where_the_server_stands_and_how_fast_it_is_asked_is_no_part_of_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(**options: Any) -> str:
        return fingerprint(OpenAIServer.Config(model=options.pop("model", "a"), **options), tmp_path)

    (tmp_path / "mine.txt").write_text("Describe it.")
    mine = str(tmp_path / "mine.txt")
    before = told()
    assert told(url="http://elsewhere:1/v1", api_key_env="K", timeout_s=1, concurrency=2, attempts=9) == before
    assert told(requests_per_minute=1) == before
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert told() == before
    others = [{"model": "b"}, {"prompt": mine}, {"seed": 1}, {"frames": 2}, {"response_format": "none"}]
    assert len({before, *(told(**each) for each in others)}) == 6
    with_mine = told(prompt=mine)
    (tmp_path / "mine.txt").write_text("Describe it well.")
    assert told(prompt=mine) != with_mine


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://host/v1",
        "http://",
        "http://me:secret@host/v1",
        "http://host/v1?key=secret",
        "http://h:x",
    ],
)
def test_addresses_that_are_none_or_hold_secrets_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"models\.captioner\.url: ") as caught:
        backend_config("captioner", {"backend": "openai_server", "model": "a", "url": url})
    assert "secret" not in str(caught.value)


def test_the_model_must_be_named() -> None:
    with pytest.raises(ValueError, match=r"models\.captioner\.model: "):
        backend_config("captioner", {"backend": "openai_server"})
