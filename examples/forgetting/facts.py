def verify(answer, reference):
    """Pass where the answer names the fact, however it says it."""
    return reference.lower() in answer.lower()
