"""What the model can call here: python, a browser of documents and the web, files, MCP servers, commands."""
