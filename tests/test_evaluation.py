import pytest

from iris_ray.errors import ConfigError
from iris_ray.evaluation import check_pattern, exact_match

GSM8K = r"#### (.+)"


def test_whole_text_is_compared_without_white_space_at_its_ends():
    assert exact_match(["3 7 9\n", "1 2"], ["3 7 9", "2 1"], None) == 0.5


def test_pattern_compares_what_it_finds_last():
    answers = ["Not #### 7 but\n#### 72", "so #### 72, then #### 8", "72"]
    assert exact_match(answers, ["#### 72"] * 3, GSM8K) == pytest.approx(1 / 3)


def test_expected_text_without_the_pattern_is_never_matched():
    assert exact_match(["no idea", "#### 72"], ["no idea", "72"], GSM8K) == 0


def test_no_answers_score_zero():
    assert exact_match([], [], None) == 0


def test_unequal_numbers_of_texts_are_refused():
    with pytest.raises(ValueError, match="longer"):
        exact_match(["a"], ["a", "b"], None)


@pytest.mark.parametrize("pattern", [None, GSM8K, r"(?:so|thus) (\d+)"])
def test_good_patterns(pattern):
    check_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("#### (.+", "not a regular expression"), ("####", "has 0 groups"), ("(a)(b)", "has 2 groups")],
)
def test_bad_patterns(pattern, message):
    with pytest.raises(ConfigError, match=f"evaluation.answer_pattern.*{message}"):
        check_pattern(pattern)
