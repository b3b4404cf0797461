"""From a flow's parameters to the settings of this process."""

from tasks.settings import Settings


def settings_for(store: str) -> Settings:
    """This process's settings with the flow's store, where one is given."""
    return Settings(store=store) if store else Settings()
