"""`prfaas chat`: one question, or a conversation. The answer goes to stdout, all else to stderr."""

import json
import sys
from contextlib import suppress
from typing import Annotated

import typer

from deploy.cli.conversation import ChatAnswer, ChatSession
from deploy.cli.failure import EXIT_INTERRUPTED, EXIT_USAGE, CommandFailed
from deploy.cli.gateway import DEFAULT_GATEWAY, GatewayClient, GatewayUrl

STDIN = "-"
INVITATION = "> "


def chat(
    prompt: Annotated[
        str | None, typer.Argument(help="One question; `-` reads it from stdin. Without it: a conversation.")
    ] = None,
    gateway: GatewayUrl = DEFAULT_GATEWAY,
    system: Annotated[str | None, typer.Option(help="What the model is told before the first question.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0: always the likeliest token.")] = None,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Give up after so long without a byte.")] = 120.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No figures behind the answer.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object when the answer is whole.")] = False,
) -> None:
    """Chat with the served model. Ctrl-C ends an answer, Ctrl-D the conversation.

    A question that is piped in is one question.
    """
    options = {"max_tokens": max_tokens, "temperature": temperature}
    conversation = ChatSession(
        GatewayClient(gateway, timeout_s),
        {name: value for name, value in options.items() if value is not None},
        [{"role": "system", "content": system}] if system else [],
    )
    if prompt == STDIN or (prompt is None and not sys.stdin.isatty()):
        prompt = sys.stdin.read()
        if not prompt.strip():
            raise CommandFailed("stdin is empty: nothing to ask", EXIT_USAGE)
    if prompt is not None:
        ask_once(conversation, prompt, quiet=quiet, as_json=as_json)
    elif as_json:
        raise CommandFailed("--json needs a question: give one, or pipe it in", EXIT_USAGE)
    else:
        converse(conversation, quiet=quiet)


def ask_once(conversation: ChatSession, prompt: str, *, quiet: bool, as_json: bool) -> None:
    """Ask, and end with the answer. Raises `CommandFailed`, and `typer.Exit` when Ctrl-C ended it."""
    try:
        answer = conversation.ask(prompt, _nothing if as_json else _show)
    except KeyboardInterrupt:
        typer.echo()
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps(answer.to_json(), ensure_ascii=False))
    else:
        _end(answer, quiet)


def converse(conversation: ChatSession, *, quiet: bool) -> None:
    """Ask what is typed until the input ends. An answer that fails ends no conversation."""
    with suppress(ImportError):  # line editing and history, where Python has them
        import readline  # noqa: F401
    if not quiet:
        typer.echo("Ctrl-C ends an answer, Ctrl-D the conversation.", err=True)
    while True:
        answer = ChatAnswer()
        try:
            question = input(INVITATION)
            if question.strip():
                conversation.ask(question, _show, answer)
                _end(answer, quiet)
        except KeyboardInterrupt:  # at the invitation it drops the line that was begun
            typer.echo(" [ended]" if answer.duration_s else "", err=True)
        except EOFError:
            typer.echo(err=True)
            return
        except CommandFailed as failure:
            if answer.text:
                typer.echo()
            typer.echo(f"prfaas: {failure}", err=True)


def _show(text: str) -> None:
    typer.echo(text, nl=False)
    sys.stdout.flush()


def _nothing(_text: str) -> None:
    pass


def _end(answer: ChatAnswer, quiet: bool) -> None:
    typer.echo()
    if not quiet:
        typer.echo(answer.summary(), err=True)
