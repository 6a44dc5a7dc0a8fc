"""The page on OpenAI's clients, run from top to bottom."""

from tests.project.pages import DOCS, blocks

PAGE = DOCS / "how-to" / "use-with-openai-clients.md"


def test_the_programs_of_the_page_run(served, capsys):
    program = "\n".join(blocks(PAGE, "python"))
    assert program.count('"any"') == 3
    key = served.keys["all"]
    program = program.replace('"any"', f'"{key}"').replace("Bearer any", f"Bearer {key}")
    program = program.replace("http://127.0.0.1:8080", served.server.url)
    names: dict[str, object] = {}
    exec(program, names)  # noqa: S102 - a page of this project
    out = capsys.readouterr().out
    assert "fp_" in out
    assert "\nwaiting\n" in out or "\nheld_out\n" in out
    for name in ("client", "anthropic", "poet", "server"):
        getattr(names[name], "close")()  # noqa: B009 - they are what the page made
