"""`hyprstream quickstart`: from a fresh installation to answers, in one command."""

from hyprstream.cli.options import LoadOptions
from hyprstream.cli.session import Context, load_model, session_of
from hyprstream.cli.text import in_bytes, in_millions

_QUESTIONS = (
    "What is the capital of France?",
    "Name three fruits.",
    "Explain what a computer is to a child.",
)
_MAX_TOKENS = 120
_SNIPPET = """\
  from hyprstream import Model

  model = Model.load("{ref}")
  for delta in model.chat_stream([{{"role": "user", "content": "Hello!"}}], max_tokens=100):
      print(delta.text, end="", flush=True)
"""


def quickstart(ctx: Context) -> None:
    """Fetch the default model, ask it three questions and show what to do next."""
    session = session_of(ctx)
    output = session.output
    model = load_model(session, None, LoadOptions())
    info = model.info
    output.done(
        f"{info.name}: {info.architecture}, {in_millions(info.num_parameters)} parameters, "
        f"{in_bytes(info.size_bytes)}, loaded in {model.load_s:.1f} s"
    )
    for question in _QUESTIONS:
        output.done("")
        output.done(f">>> {question}")
        messages = [{"role": "user", "content": question}]
        # The most likely tokens: every first run alike, and what other programs give as well.
        with model.chat_stream(messages, temperature=0, max_tokens=_MAX_TOKENS) as generation:
            for delta in generation:
                output.text(delta.text)
        output.text("\n")
        done = generation.completion
        output.done(f"({done.usage.completion_tokens} tokens, {done.timings.tokens_per_s:.0f}/s)")
    output.done("")
    output.done("Next: talk with it")
    output.done("  hyprstream chat")
    output.done("or use it from Python")
    for line in _SNIPPET.format(ref=model.ref).splitlines():
        output.done(line)
