"""The door of a worker's gRPC server: each method has a rule, and what has none is open to nobody."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from forebay.cacheruntime import rpc, tracing
from forebay.cacheruntime.cluster.security import Security, token_of_call
from forebay.cacheruntime.cluster.tokens import Authorizer, Verb
from forebay.cacheruntime.errors import AccessDenied, ForebayError


@dataclass(frozen=True)
class Rule:
    """Who may call a method."""

    verb: Verb | None = None
    """Clients need a token with it."""
    dataset: Callable[[Any], str] | None = None
    """From the request to the name of the dataset it is about; None beside a verb: the method looks itself
    (`Authorizer.grant`), and only that there is a valid token is verified here."""
    workers_only: bool = False


OPEN = Rule()
"""For whoever has a certificate: health, Identify."""
WORKERS = Rule(workers_only=True)


def on_dataset(verb: Verb, dataset: Callable[[Any], str]) -> Rule:
    """A method that is about one dataset."""
    return Rule(verb, dataset)


class Guard(grpc.ServerInterceptor):  # type: ignore[misc]
    """Holds each call against its rule before the method sees it."""

    def __init__(self, security: Security, authorizer: Authorizer, rules: Mapping[str, Rule]) -> None:
        """
        Args:
            security: of this worker.
            authorizer: of this worker.
            rules: full name of a method, like `/grpc.health.v1.Health/Check`, to its rule.
        """
        self._security = security
        self._authorizer = authorizer
        self._rules = rules

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        rule = self._rules.get(method)
        if rule is not None and rule.dataset is not None and handler.request_streaming:
            rule = None  # nobody knows which dataset it is about before it runs

        # A message that gRPC cannot parse leaves its stream open for ever (64 of them, and the connection is dead), and
        # a traceback in the log. So it is parsed here.
        parse = None if handler.request_streaming else handler.request_deserializer

        def guarded(inner: Callable[..., Any]) -> Callable[..., Any]:
            def behaviour(request: Any, context: grpc.ServicerContext) -> Any:
                try:
                    message = request if parse is None else parse(request)
                except DecodeError:
                    context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"what came with {method} cannot be read")
                self._admit(method, rule, message, context)
                if handler.response_streaming or not tracing.is_on():
                    return inner(message, context)
                parent = dict(context.invocation_metadata()).get(tracing.TRACEPARENT, "")
                with tracing.span(method.removeprefix("/"), "SERVER", str(parent)):
                    return inner(message, context)

            return behaviour

        kind = ("stream" if handler.request_streaming else "unary") + (
            "_stream" if handler.response_streaming else "_unary"
        )
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        deserializer = handler.request_deserializer if handler.request_streaming else None
        return make(guarded(getattr(handler, kind)), deserializer, handler.response_serializer)

    def _admit(self, method: str, rule: Rule | None, request: Any, context: grpc.ServicerContext) -> None:
        try:
            identity = self._security.identity_of_call(context)
            if rule is None:
                raise AccessDenied(f"{method} is open to nobody")
            if rule.workers_only:
                self._authorizer.check_worker(identity)
            elif rule.verb is not None and rule.dataset is not None:
                self._authorizer.check(identity, token_of_call(context), rule.verb, rule.dataset(request))
            elif rule.verb is not None:
                self._authorizer.grant(identity, token_of_call(context))
        except ForebayError as error:
            rpc.abort(context, error)
        except (ValueError, DecodeError):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"what came with {method} cannot be read")
