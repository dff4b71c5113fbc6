import pytest

pytest.importorskip("jinja2")

from jaxreward.tasks import chat_template

CHAT = [[{"role": "user", "content": "hi <\u00e9>"}]]


def test_what_a_template_can_use():
    source = (
        "{% for m in messages %}\n    [{{ m.role }}]{{ m.content | tojson }}\n{% endfor %}\n"
        "{% if add_generation_prompt %}>{% endif %}{{ extra }}{{ strftime_now('%Y')[:2] }}"
    )
    found = chat_template.render(
        source, CHAT * 2, add_generation_prompt=True, variables={"extra": "E"}
    )
    assert found == ['    [user]"hi <\u00e9>"\n>E20'] * 2


@pytest.mark.parametrize(
    "source, message",
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% for x %}", "TemplateSyntaxError"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages[0].foo.bar }}", "UndefinedError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ 'a' * 10**10 }}", "too much memory"),
        ("{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}"
         "{% endfor %}{{ n.x }}", "too much memory"),
    ],
)  # fmt: skip
def test_hostile_templates_fail_cleanly(source, message):
    with pytest.raises(ValueError, match=f"the chat template fails: .*{message}"):
        chat_template.render(source, CHAT)


def test_a_template_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr(chat_template, "CPU_SECONDS", 1)
    loops = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    with pytest.raises(ValueError, match="ended by signal .* allowed are 1 s"):
        chat_template.render(loops, CHAT)
    monkeypatch.setattr(chat_template, "CHARACTERS", 1000)
    with pytest.raises(ValueError, match="more than 1000 characters"):
        chat_template.render("{% for i in range(99999) %}abc{% endfor %}", CHAT)
