from hyprstream.engine.drafts import Drafter


def test_what_followed_the_same_words_is_proposed():
    assert Drafter(4).propose([1, 2, 3, 4, 5, 1, 2, 3], 4) == (4, 5)


def test_three_tokens_count_for_more_than_two():
    assert Drafter(4).propose([1, 2, 3, 7, 8, 2, 3, 9, 1, 2, 3], 1) == (7,)
    assert Drafter(4).propose([5, 2, 3, 7, 8, 2, 3, 9, 1, 2, 3], 1) == (9,)


def test_one_token_alone_predicts_nothing():
    assert Drafter(4).propose([1, 2, 3, 4, 9, 3], 4) == ()


def test_a_repetition_goes_on_as_long_as_is_asked_for():
    drafter = Drafter(8)
    drafter.learn(2, 2)
    drafter.learn(4, 4)
    assert drafter.propose([1, 2, 1, 2, 1], 8) == (2, 1) * 4


def test_no_more_is_proposed_than_is_of_use():
    assert Drafter(4).propose([1, 1, 1, 1], 1) == (1,)
    assert Drafter(4).propose([1, 1, 1, 1], 0) == ()
    assert Drafter(4).propose([1, 1, 1, 1], -1) == ()
    assert Drafter(0).propose([1, 1, 1, 1], 4) == ()


def test_right_guesses_make_longer_ones():
    drafter, token_ids = Drafter(4), [1] * 8
    assert len(drafter.propose(token_ids, 9)) == 2
    drafter.learn(2, 2)
    assert len(drafter.propose(token_ids, 9)) == 4
    drafter.learn(4, 4)
    assert len(drafter.propose(token_ids, 9)) == 4
    drafter.learn(4, 1)
    assert len(drafter.propose(token_ids, 9)) == 1


def test_wrong_guesses_make_longer_and_longer_pauses():
    drafter, token_ids = Drafter(4), [1] * 8
    pauses = []
    for _ in range(8):
        pauses.append(0)
        while not (drafts := drafter.propose(token_ids, 4)):
            pauses[-1] += 1
        drafter.learn(len(drafts), 0)
    assert pauses == [0, 2, 4, 8, 16, 32, 64, 64]


def test_a_right_guess_ends_the_pauses():
    drafter, token_ids = Drafter(4), [1] * 8
    for num_right in (0, 0, 1):
        while not (drafts := drafter.propose(token_ids, 4)):
            pass
        drafter.learn(len(drafts), num_right)
    assert drafter.propose(token_ids, 4) == (1, 1)
