"""Documents become chunks of equal length, in scripts with spaces and without."""

import unicodedata

import pytest

from radit_jax.data.readers.chunking import Document, document_id, split_document, split_passage


def test_the_chunks_of_an_article_are_numbered_through_its_sections():
    article = Document("5", (("Tern", "one two three"), ("Tern:\nLife", "four")), "")
    chunks = split_document(article, max_words=3)
    assert [(c.id, c.title, c.text) for c in chunks] == [
        ("5#1", "Tern", "one two"),
        ("5#2", "Tern", "three"),
        ("5#3", "Tern: Life", "four"),
    ]
    assert {document_id(chunk.id) for chunk in chunks} == {"5"}
    assert split_document(Document("5", (("Tern", " "),), ""), max_words=3) == ()


def test_a_long_passage_becomes_equal_chunks_of_fewer_words():
    assert split_passage("one two three four", max_words=5) == ["one two three four"]
    assert split_passage("one two three four", max_words=4) == ["one two", "three four"]
    assert split_passage("1 2 3 4 5 6 7", max_words=4) == ["1 2 3", "4 5", "6 7"]
    assert split_passage(" one\n\ntwo ", max_words=200) == ["one two"]
    assert split_passage(" ", max_words=200) == []
    lengths = [len(chunk.split()) for chunk in split_passage("word " * 1000, max_words=200)]
    assert sorted(lengths) == [166, 166, 167, 167, 167, 167]


def test_a_chunk_of_one_word_at_most_is_refused():
    with pytest.raises(ValueError, match=r"data\.max_words: expected at least 2, got 1\. Raise it"):
        split_passage("text", max_words=1)


@pytest.mark.parametrize("text", ["北京是中国的首都。" * 50, "กรุงเทพเป็นเมืองหลวง" * 30, "ကမ္ဘာ" * 90])
def test_a_text_without_spaces_becomes_equal_chunks_that_join_to_it(text):
    chunks = split_passage(text, max_words=60)
    assert len(chunks) > 4 and "".join(chunks) == text
    assert max(map(len, chunks)) - min(map(len, chunks)) < 12
    assert not any(unicodedata.category(chunk[0]).startswith(("M", "P")) for chunk in chunks)


def test_a_text_of_both_kinds_keeps_its_spaces():
    assert split_passage("iPhone 手机  in 2007", max_words=4) == ["iPhone 手机", "in 2007"]
