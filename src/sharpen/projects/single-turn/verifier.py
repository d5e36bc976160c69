def verify(answer, reference):
    """Pass where the answer is the reference, case and the full stop aside. Return a bool, or a number with a threshold in run.yaml."""
    return answer.strip().rstrip(".!").lower() == reference
