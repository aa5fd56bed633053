"""What a model writes that calls tools."""

CHANNEL = "<|channel|>"


def python(code, thought="Compute."):
    return _thought(thought) + f"{CHANNEL}analysis to=python code<|message|>{code}<|call|>"


def browser(function, arguments, thought="Look."):
    header = f"{CHANNEL}analysis to=browser.{function} code<|message|>"
    return _thought(thought) + f"{header}{arguments}<|call|>"


def function(name, arguments, thought="Look."):
    header = f"{CHANNEL}commentary to=functions.{name} <|constrain|>json<|message|>"
    return _thought(thought) + f"{header}{arguments}<|call|>"


def final(text):
    return f"{CHANNEL}final<|message|>{text}<|return|>"


def _thought(text):
    return f"{CHANNEL}analysis<|message|>{text}<|end|><|start|>assistant"
