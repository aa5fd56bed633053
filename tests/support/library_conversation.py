"""A conversation as openai-harmony has it, to compare ours with."""

import openai_harmony as library


def library_conversation(setup, messages):
    """The same through openai-harmony's own classes, built here from dictionaries."""
    system = library.SystemContent(
        reasoning_effort=setup.effort.capitalize(), conversation_start_date=setup.date
    )
    result = [{"role": "system", "content": [system.to_dict()]}]
    developer = library.DeveloperContent.new().with_instructions(setup.instructions)
    if setup.functions:
        tools = [library.ToolDescription.new(f.name, f.description, f.parameters) for f in setup.functions]
        developer = developer.with_function_tools(tools)
    result.append({"role": "developer", "content": [developer.to_dict()]})
    for m in messages:
        raw = {"role": m.role, "content": m.text, "name": m.name, "channel": m.channel}
        kind = "<|constrain|>json" if m.content_type == "json" else m.content_type
        result.append(raw | {"recipient": m.recipient, "content_type": kind})
    return library.Conversation.from_messages([library.Message.from_dict(raw) for raw in result])
