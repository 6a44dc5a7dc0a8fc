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


def test_the_programs_of_the_page_on_sql_run(served, capsys):
    program = "\n".join(blocks(DOCS / "how-to" / "query-with-sql.md", "python"))
    program = program.replace("Bearer KEY", f"Bearer {served.keys['all']}")
    program = program.replace("grpc://127.0.0.1:32010", served.server.flight)
    exec(program, {})  # noqa: S102 - a page of this project
    out = capsys.readouterr().out.splitlines()
    assert any(line.startswith("poet ") for line in out)
    assert any(line.startswith("('2', 'It rains in Bergen.'") for line in out)
    assert "1 kept" in out
