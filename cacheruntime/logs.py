"""How the logs of worker, supervisors and handlers are written: as text, or one JSON object a line."""

import json
import logging
import os
import sys
import time
from types import TracebackType

LOG_FORMATS = ("text", "json")
"""What FOREBAY_LOG_FORMAT may be."""

_TEXT_TIME = "%Y-%m-%d %H:%M:%S"


class JsonFormatter(logging.Formatter):
    """One object a line: time (UTC, RFC 3339), level, process, pid, logger, message; an exception if there is one."""

    def __init__(self, process: str) -> None:
        """Args: process: 'worker', 'supervisor' or 'handler'."""
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        trouble = self.formatException(record.exc_info) if record.exc_info else ""
        return json_line(
            self._process, record.levelname, record.getMessage(), record.name, record.created, record.process, trouble
        )


def json_line(
    process: str, level: str, message: str, logger: str, at_s: float, pid: int | None, exception: str = ""
) -> str:
    """A line of a structured log."""
    seconds, fraction = divmod(at_s, 1)
    stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(fraction * 1000):03}Z"
    fields = {"time": stamp, "level": level, "process": process, "pid": pid, "logger": logger, "message": message}
    return json.dumps(fields | ({"exception": exception} if exception else {}))


def text_line(process: str, level: str, message: str, at_s: float, pid: int) -> str:
    """The same as text."""
    return f"{time.strftime(_TEXT_TIME, time.localtime(at_s))} {level} {process} {pid}: {message}"


def set_up_logs(process: str, log_format: str, handler: logging.Handler) -> None:
    """Send this process's log to a handler, in one of `LOG_FORMATS`; what ends the process too."""
    if log_format == "json":
        handler.setFormatter(JsonFormatter(process))
    else:
        handler.setFormatter(
            logging.Formatter(f"%(asctime)s %(levelname)s {process} %(process)d %(name)s: %(message)s", _TEXT_TIME)
        )
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("botocore").setLevel(logging.WARNING)

    def ends(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        logging.getLogger(process).critical("it ends by a fault of its own", exc_info=(kind, error, trace))

    if log_format == "json":
        sys.excepthook = ends


def say(process: str, log_format: str, message: str) -> None:
    """A line on standard output, which is the log of a process that does without `logging`."""
    now = time.time()
    if log_format == "json":
        print(json_line(process, "INFO", message, process, now, os.getpid()), flush=True)
    else:
        print(text_line(process, "INFO", message, now, os.getpid()), flush=True)
