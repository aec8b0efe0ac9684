"""Scripts without spaces are told from others, quickly and exactly."""

import re
import sys

from radit_jax.text import words


def test_the_quick_search_misses_no_character_of_a_script_without_spaces():
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]))
    found = "".join(words._HAS_UNSPACED.findall(everything))
    assert len(found) > 90_000
    assert re.sub(words._MAY_BE_UNSPACED, "", found) == ""


def test_scripts_with_spaces_are_spaced():
    for text in ("Ελλάδα", "Россия", "서울은 수도", "हिन्दी", "العربية", "“–”", "🚁", "བོད་"):
        assert words.is_spaced(text)
    for text in ("a 北 b", "カ", "ｶ", "ー", "ไทย", "ລາວ", "ខ្មែរ", "မြန်မာ", "〆"):
        assert not words.is_spaced(text)
