"""Captions by a vision language model behind an OpenAI-compatible server, such as vLLM or SGLang."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPSConnection, IncompleteRead
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

import cv2
from pydantic import Field, field_validator

from models.caption_answer import SCHEMA, AnswerError, clip_caption, start_of
from models.caption_request import REMINDER, CaptionerConfig, KeptAnswers, shown, time_note
from models.errors import UserError
from models.protocols import ClipCaption, Image, Keyframe

FIRST_WAIT_S = 1.0
"""Before the second attempt; each further wait is twice as long."""
LONGEST_WAIT_S = 60.0
"""No wait is longer; a server that asks for more has failed."""

FORMATS: dict[str, dict[str, Any]] = {
    "json_schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "caption", "strict": True, "schema": SCHEMA},
        }
    },
    "json_object": {"response_format": {"type": "json_object"}},
    "none": {},
}

ADVICE = {
    400: "it may not know response_format (json_object and none ask less of it), or allow fewer pictures (frames)",
    401: "it wants a key: put one into the environment variable {api_key_env}",
    403: "it refuses the key: see the environment variable {api_key_env}",
    404: "does it serve the model {model!r}, and does `url` end as it should, mostly in /v1?",
    413: "send less: lower frames, max_side or jpeg_quality",
    429: "ask for less: lower requests_per_minute or concurrency",
}


class CaptionServerError(UserError, RuntimeError):
    """A server that does not answer; the message names its address, what went wrong and what to do."""


class Pace:
    """Lets so many requests a minute go, evenly spaced, whatever thread they come from."""

    def __init__(
        self,
        per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._free = clock()

    def wait(self) -> None:
        """Return when the next request may go."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._free)
            self._free = turn + self._gap
        if turn > now:
            self._sleep(turn - now)


class OpenAIServer:
    """One request per clip, several at once; keyframes travel as JPEG. Proxies of the environment are not used."""

    class Config(CaptionerConfig):
        """Options of ``backend: openai_server``."""

        speed: ClassVar[frozenset[str]] = frozenset(
            {"url", "api_key_env", "timeout_s", "attempts", "requests_per_minute", "concurrency"}
        )

        backend: Literal["openai_server"] = "openai_server"
        """Name of this backend."""
        model: str
        """Name under which the server serves the model. It must stand for one set of weights: what the server does
        with the name cannot be seen from here."""
        url: str = "http://localhost:8000/v1"
        """Address of the server's API, without `/chat/completions`."""
        api_key_env: str = "OPENAI_API_KEY"
        """Environment variable, in the worker, that holds the key. Where it is not set, none is sent."""
        jpeg_quality: int = Field(90, ge=1, le=100)
        """Quality that frames are compressed with."""
        response_format: Literal["json_schema", "json_object", "none"] = "json_schema"
        """How the server is told to answer in JSON: by the schema, as any object, or by the prompt alone."""
        seed: int = 0
        """Seed of the server's sampling, which a temperature of 0 leaves little to."""
        timeout_s: float = Field(120, gt=0)
        """Seconds that a request may take."""
        attempts: int = Field(5, ge=1)
        """How often a request is sent before a server that is out of reach, too busy or broken is an error."""
        requests_per_minute: float | None = Field(None, gt=0)
        """How many requests a worker sends at most; null is no limit."""
        concurrency: int = Field(8, ge=1)
        """Requests that a worker has under way at once, at most one per clip of its batch (`runtime`)."""

        @field_validator("url")
        @classmethod
        def _is_address(cls, url: str) -> str:
            parts = urlsplit(url)
            # Reading the port checks it.
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or " " in url:
                raise ValueError("expected an address such as http://localhost:8000/v1")
            if parts.username or parts.password or parts.query or parts.fragment:
                raise ValueError("no user, password or query: a key belongs into the variable that api_key_env names")
            return url.rstrip("/")

    def __init__(self, config: OpenAIServer.Config, root: Path) -> None:
        self._config = config
        self._questions = [config.question(), *[f"{config.question()}\n\n{REMINDER}"] * config.retries]
        self._key = os.environ.get(config.api_key_env, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise CaptionServerError(f"{config.backend}: the environment variable {config.api_key_env} holds no key")
        self._pace = Pace(config.requests_per_minute)
        self._sleep: Callable[[float], None] = time.sleep
        self._kept = KeptAnswers()

    def caption(self, clips: Sequence[Sequence[Keyframe]]) -> list[ClipCaption]:
        """A caption and its subjects per clip.

        Raises:
            AnswerError: a ValueError that names the clip's place in the call, if the answer about a clip does not fit
                however often it is asked for.
            CaptionServerError: if the server does not answer, or refuses the request.
            ValueError: for a clip without keyframes.
        """
        pictures = [self._pictures(keyframes) for keyframes in clips]
        keys = [hashlib.sha256(self._body(parts, self._questions[0])).hexdigest() for parts in pictures]
        return self._kept.complete(keys, lambda places: self._ask(pictures, places))

    def _ask(
        self, pictures: Sequence[list[dict[str, Any]]], places: Sequence[int]
    ) -> dict[int, ClipCaption | Exception]:
        def ask(place: int) -> ClipCaption | Exception:
            try:
                return self._caption(pictures[place])
            except AnswerError as error:
                return AnswerError(
                    f"{self._config.url}: {self._config.model}: clip {place + 1} of {len(pictures)}: {error}"
                )
            except CaptionServerError as error:
                return error

        with ThreadPoolExecutor(min(self._config.concurrency, len(places))) as threads:
            return dict(zip(places, threads.map(ask, places), strict=True))

    def _caption(self, pictures: list[dict[str, Any]]) -> ClipCaption:
        for question in self._questions[:-1]:
            try:
                return self._once(pictures, question)
            except AnswerError:
                continue
        return self._once(pictures, self._questions[-1])

    def _once(self, pictures: list[dict[str, Any]], question: str) -> ClipCaption:
        choice = self._complete(self._body(pictures, question))
        answer = choice["message"].get("content")
        try:
            return clip_caption(answer if isinstance(answer, str) else "", self._config.max_subjects)
        except AnswerError as error:
            if choice.get("finish_reason") == "length":
                raise AnswerError(f"{error}; it was cut off: max_tokens is {self._config.max_tokens}") from None
            raise

    def _pictures(self, keyframes: Sequence[Keyframe]) -> list[dict[str, Any]]:
        """The part of a message that shows a clip."""
        parts: list[dict[str, Any]] = []
        for seconds, image in shown(keyframes, self._config.frames, self._config.max_side):
            parts.append({"type": "text", "text": time_note(seconds)})
            parts.append({"type": "image_url", "image_url": {"url": _data_url(image, self._config.jpeg_quality)}})
        return parts

    def _body(self, pictures: list[dict[str, Any]], question: str) -> bytes:
        content = [*pictures, {"type": "text", "text": question}]
        return json.dumps(
            {
                "model": self._config.model,
                "messages": [{"role": "user", "content": content}],
                "max_tokens": self._config.max_tokens,
                "temperature": 0,
                "seed": self._config.seed,
                **FORMATS[self._config.response_format],
            }
        ).encode()

    def _complete(self, body: bytes) -> dict[str, Any]:
        """The first choice of a chat completion, after as many attempts as it takes.

        Raises:
            CaptionServerError: if it takes too many, or the server's answer is final.
        """
        for attempt in range(1, self._config.attempts + 1):
            self._pace.wait()
            wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1))
            try:
                status, headers, content = self._exchange(body)
            except ssl.SSLCertVerificationError as error:
                raise self._error(f"its certificate does not hold: {error}", "mend it, or use http") from None
            except TimeoutError:
                trouble = f"no answer within {self._config.timeout_s:g} s"
                advice = "raise timeout_s, or lower concurrency"
            except (OSError, HTTPException) as error:
                trouble = f"{type(error).__name__}: {error}"
                advice = "is the server up, and is `url` right?"
            else:
                if status == 200:
                    choice = _first_choice(content)
                    if choice is not None:
                        return choice
                    trouble = f"status 200, but no chat completion: {self._excerpt(content)}"
                    advice = "is `url` the address of an OpenAI-compatible API, mostly ending in /v1?"
                else:
                    trouble = f"status {status}: {self._excerpt(content)}"
                    advice = ADVICE.get(status, "the server's log says more").format(**self._config.model_dump())
                    wait = max(0.0, _retry_after(headers, wait))
                    if status not in (408, 425, 429) and status < 500:
                        raise self._error(trouble, advice)
                    if wait > LONGEST_WAIT_S:
                        raise self._error(f"{trouble}; it asks to wait {wait:g} s", advice)
            if attempt < self._config.attempts:
                self._sleep(wait)
        raise self._error(f"{trouble} (attempt {attempt} of {attempt})", advice)

    def _exchange(self, body: bytes) -> tuple[int, HTTPMessage, bytes]:
        """Status, headers and body of the server's answer to one request.

        Raises:
            TimeoutError: if it is not complete after ``timeout_s`` seconds.
            OSError: if the connection fails.
            HTTPException: if it ends too early, or what comes is not HTTP.
        """
        ends = time.monotonic() + self._config.timeout_s
        address = urlsplit(self._config.url)
        kind = HTTPSConnection if address.scheme == "https" else HTTPConnection
        connection = kind(address.hostname or "", address.port, timeout=self._config.timeout_s)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            connection.connect()
            socket = connection.sock
            connection.request("POST", f"{address.path}/chat/completions", body, headers)
            response = connection.getresponse()
            content = bytearray()
            while not response.isclosed():
                # A server that sends a little now and then would never run into a limit on single reads.
                socket.settimeout(max(0.001, ends - time.monotonic()))
                chunk = response.read1(65536)
                if not chunk:
                    break
                content += chunk
            if response.length:
                raise IncompleteRead(bytes(content), response.length)
            return response.status, response.headers, bytes(content)
        finally:
            connection.close()

    def _excerpt(self, content: bytes) -> str:
        # Hidden before it is cut, for half a key is still one.
        return start_of(self._without_key(content.decode("utf-8", "replace")))

    def _error(self, trouble: str, advice: str) -> CaptionServerError:
        return CaptionServerError(self._without_key(f"{self._config.url}/chat/completions: {trouble}; {advice}"))

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _data_url(image: Image, quality: int) -> str:
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"


def _first_choice(content: bytes) -> dict[str, Any] | None:
    """The first choice of a chat completion, or nothing where there is none."""
    try:
        choice = json.loads(content)["choices"][0]
        choice["message"].get("content")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    found: dict[str, Any] = choice
    return found


def _retry_after(headers: HTTPMessage, otherwise: float) -> float:
    """Seconds that a server asks to wait, given in seconds or as a date."""
    told = headers.get("Retry-After", "").strip()
    try:
        return float(told)
    except ValueError:
        pass
    try:
        return email.utils.parsedate_to_datetime(told).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return otherwise
