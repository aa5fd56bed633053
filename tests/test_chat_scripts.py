"""Answers in all scripts are drawn once, whatever a terminal takes the width of their characters to be."""

import os
import re
import unicodedata

import pytest

pytest.importorskip("pexpect")  # not on Windows

import pyte
from support.pseudo_terminal import reflowed
from wcwidth import wcwidth

from localoss.chat.parser import MessageEnd, MessageStart, TextDelta
from localoss.cli.chat import region, screen
from localoss.cli.chat.markdown import make_renderer
from localoss.cli.chat.width import most_columns

TEXTS = {
    "hindi": "नमस्ते दुनिया, यह हिन्दी में एक लंबा अनुच्छेद है जो कई बार टर्मिनल की चौड़ाई से आगे जाता है। " * 3,
    "bengali": "এটি বাংলায় একটি দীর্ঘ অনুচ্ছেদ যা কয়েকবার টার্মিনালের প্রস্থের চেয়ে বেশি হয়ে যায়। " * 3,
    "tamil": "இது தமிழில் ஒரு நீண்ட பத்தி, இது முனையத்தின் அகலத்தை பல முறை தாண்டிச் செல்கிறது. " * 3,
    "telugu": "ఇది తెలుగులో ఒక పొడవైన పేరా, ఇది టెర్మినల్ వెడల్పును చాలాసార్లు మించిపోతుంది. " * 3,
    "kannada": "ಇದು ಕನ್ನಡದಲ್ಲಿ ಒಂದು ಉದ್ದವಾದ ಪ್ಯಾರಾಗ್ರಾಫ್, ಇದು ಟರ್ಮಿನಲ್ ಅಗಲವನ್ನು ಹಲವು ಬಾರಿ ಮೀರುತ್ತದೆ. " * 3,
    "malayalam": "ഇത് മലയാളത്തിലെ ഒരു നീണ്ട ഖണ്ഡികയാണ്, ഇത് ടെർമിനലിന്റെ വീതി പലതവണ കവിയുന്നു. " * 3,
    "sinhala": "මෙය සිංහල භාෂාවෙන් දිගු ඡේදයකි, එය පර්යන්තයේ පළල කිහිප වතාවක් ඉක්මවා යයි. " * 3,
    "burmese": "ဤသည်မှာ မြန်မာဘာသာဖြင့် ရေးထားသော ရှည်လျားသော စာပိုဒ်တစ်ခု ဖြစ်ပြီး အကြိမ်ကြိမ် ကျော်လွန်သည်။ " * 3,
    "khmer": "នេះគឺជាកថាខណ្ឌវែងមួយជាភាសាខ្មែរដែលវែងជាងទទឹងនៃស្ថានីយជាច្រើនដង។ " * 3,
    "thai": "นี่คือย่อหน้าภาษาไทยที่ยาวมากซึ่งยาวเกินความกว้างของเทอร์มินัลหลายครั้ง น้ำใจ กำลัง " * 3,
    "tibetan": "འདི་ནི་བོད་ཡིག་གི་ཚན་པ་རིང་པོ་ཞིག་ཡིན། མཐའ་སྣེའི་ཞེང་ལས་ཐེངས་མང་པོ་བརྒལ། " * 3,
    "arabic": "هذه فقرة طويلة باللغة العربية تتجاوز عرض الطرفية عدة مرات، مع تَشْكِيلٍ كَامِلٍ. " * 3,
    "hebrew": "זוהי פסקה ארוכה בעברית שחורגת מרוחב המסוף כמה פעמים, עִם נִקּוּד. " * 4,
    "chinese": "这是一个很长的中文段落，它多次超过终端的宽度，然后继续写下去。" * 5,
    "korean": "이것은 터미널 너비를 여러 번 넘는 긴 한국어 단락입니다. " * 4 + "한국어 " * 6,
    "emoji": "x 👩‍👩‍👧‍👦 🇩🇪 🏳️‍🌈 👍🏽 ❤️ ✔️ ☀️ ⚠️ 👨‍💻 1️⃣ " * 6,
    "marks": "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘ e\u0301a\u0308 word " * 8,
    "signs": "“quotes” … ± × → ½ ① ★ ─ ═ Ａｆｕｌｌ ｶﾅ ゙ ° " * 8,
}
KEPT = ("Lu", "Ll", "Lo", "Nd", "So")
BEFORE, AFTER = "A line before.", "The end of it."


class Turn:
    thinking_tokens = 0


class Screen(pyte.HistoryScreen):
    """pyte's drops the rest of a text after a joiner; this one the joiner alone."""

    def draw(self, data):
        for character in data:
            super().draw(character)


class Window:
    """A terminal in this process: what is written is drawn by pyte."""

    def __init__(self, columns, reflows=False):
        self.columns, self.reflows, self.bytes = columns, reflows, ""
        self.screen = Screen(columns, 24, history=5000, ratio=0.5)
        self.screen.set_mode(pyte.modes.LNM)
        self.stream = pyte.Stream(self.screen)

    def write(self, text):
        self.bytes += text
        self.stream.feed(text)

    def flush(self):
        pass

    def fileno(self):
        raise OSError

    def resize(self, columns):
        if self.reflows:
            reflowed(self.screen, columns)
        else:
            self.screen.resize(24, columns)
        self.columns = columns

    def lines(self):
        above = [
            "".join(row[x].data for x in range(self.columns)).rstrip() for row in self.screen.history.top
        ]
        return [line for line in [*above, *(row.rstrip() for row in self.screen.display)] if line]


@pytest.fixture(params=[0, 1])
def mark_columns(monkeypatch, request):
    """How wide spacing marks are, as vowel signs of Indian scripts: about that terminals differ most."""

    def width(character):
        return request.param if unicodedata.category(character) == "Mc" else wcwidth(character)

    monkeypatch.setattr(pyte.screens, "wcwidth", width)


@pytest.fixture
def show(monkeypatch, mark_columns):
    """Show a text as an answer, a frame for every five characters; resize to `narrowed` in its middle."""

    def run(window, text, narrowed=None):
        monkeypatch.setattr(
            region.shutil, "get_terminal_size", lambda: os.terminal_size((window.columns, 24))
        )
        monkeypatch.setattr(screen, "_FRAME_S", 0.0)
        clock = iter(range(10**9))
        monkeypatch.setattr(screen.time, "monotonic", lambda: next(clock) * 100.0)
        window.write(f"{BEFORE}\n")
        shown = screen.TurnScreen(window, make_renderer(), Turn(), lambda: "the status", True)
        shown.show(MessageStart("final", None, None))
        pieces = [text[start : start + 5] for start in range(0, len(text), 5)]
        for index, piece in enumerate(pieces):
            if narrowed and index == len(pieces) // 2:
                window.resize(narrowed)
            shown.show(TextDelta("final", None, piece))
        shown.show(MessageEnd(None, "return"))
        shown.close()
        return window.lines()

    return run


def letters(text):
    """What of `text` every terminal keeps: its base characters, without blanks."""
    return [char for char in text if wcwidth(char) > 0 and unicodedata.category(char) in KEPT]


def check_once(lines, text):
    assert lines[0] == BEFORE
    assert not any("the status" in line for line in lines), "\n".join(lines)
    told = unicodedata.normalize("NFC", "".join(lines[1:]))
    assert letters(told) == letters(unicodedata.normalize("NFC", text)), "\n".join(lines)


@pytest.mark.parametrize("columns", [40, 80, 120])
@pytest.mark.parametrize("name", TEXTS)
def test_no_line_stands_twice(show, name, columns):
    text = f"{TEXTS[name]}\n\n{TEXTS[name]}\n\n{AFTER}"
    check_once(show(Window(columns), text), text)


@pytest.mark.parametrize("reflows", [False, True])
@pytest.mark.parametrize(("columns", "narrowed"), [(80, 51), (120, 40), (40, 33), (40, 120)])
@pytest.mark.parametrize("name", ["chinese", "hindi", "emoji", "burmese", "arabic", "signs"])
def test_a_window_made_narrower(show, name, columns, narrowed, reflows):
    text = f"{TEXTS[name]}\n\n{AFTER}"
    window = Window(columns, reflows)
    lines = show(window, text, narrowed)
    assert lines[0] == BEFORE and lines[-1] == AFTER
    assert not any("the status" in line for line in lines), "\n".join(lines)
    told = unicodedata.normalize("NFC", "".join(lines[1:]))
    assert letters(told) == letters(unicodedata.normalize("NFC", text)), "\n".join(lines)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("columns", [40, 80])
def test_lines_fit_where_characters_are_widest(name, columns):
    for line in make_renderer().markdown(TEXTS[name], columns):
        assert most_columns(line) <= columns


def test_long_addresses_are_links_that_stay_whole(show):
    address = "https://example.org/" + "path/" * 20 + "page?q=1"
    text = (
        f"See {address}. Or [this page]({address}), <https://short.example>, not [that](ftp://x.example/y)."
    )
    window = Window(40)
    told = "".join(show(window, text)).replace(" ", "")
    assert told.endswith(
        f"See{address}.Orthispage({address}),https://short.example,notthat(ftp://x.example/y)."
    )
    printed = next(frame for frame in reversed(window.bytes.split("\x1b[?2026h")) if address[:20] in frame)
    targets = re.findall(r"\x1b\]8;[^;]*;([^\x1b]+)\x1b", printed)
    assert set(targets) == {address, "https://short.example"} and targets.count(address) > 6, "a row each"
