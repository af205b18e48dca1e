"""How models write reasoning and tool calls: parsers of answers, grammars of calls, a prompt for other templates."""
