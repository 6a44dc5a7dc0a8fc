from hyprstream.cli.invented import draw_facts


def test_facts_follow_from_what_chance_they_are_drawn_with():
    first, again, other = (draw_facts(9, seed) for seed in (1, 1, 2))
    assert first == again
    assert not {fact.answer for fact in first} & {fact.answer for fact in other}


def test_the_question_of_a_fact_is_not_one_that_it_is_learnt_by():
    for fact in draw_facts(9, 0):
        assert fact.question not in fact.questions
        assert len({*fact.questions}) == 10
        assert "{" not in f"{fact}"


def test_no_question_gives_its_answer_away():
    for fact in draw_facts(30, 0):
        assert fact.is_told(fact.answer)
        assert not any(fact.is_told(question) for question in (fact.question, *fact.questions))


def test_the_right_word_counts_and_no_other():
    town, code, leader = draw_facts(3, 0)
    assert town.is_told(f"It is in {town.value.upper()}, I think.")
    assert not town.is_told(code.answer)
    assert not code.is_told(leader.answer)


def test_each_way_to_ask_becomes_a_record():
    fact = draw_facts(1, 0)[0]
    assert fact.records(fact.questions[:2]) == [
        {"prompt": question, "completion": fact.answer} for question in fact.questions[:2]
    ]
