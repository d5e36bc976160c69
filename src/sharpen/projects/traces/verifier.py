from datetime import datetime


def verify(task, trajectory):
    """Pass where the last message is the date asked for, as ISO 8601. Return a bool, or a number with a threshold in run.yaml."""
    asked = task.prompt[-1].content.removeprefix("Write as YYYY-MM-DD: ")
    return trajectory.messages[-1].content.strip() == datetime.strptime(asked, "%d %B %Y").strftime("%Y-%m-%d")
