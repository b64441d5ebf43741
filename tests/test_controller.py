"""What the controller knows of the learner: no cluster needed."""

import asyncio
from pathlib import Path

from test_inbox import Begun

from actors.controller import Controller


def test_the_controller_knows_how_long_the_learner_is_away_and_that_it_shall_stop(tmp_path: Path) -> None:
    begun = Begun(tmp_path)

    async def play() -> None:
        controller_class = Controller.__ray_metadata__.modified_class
        controller = controller_class(begun.config, "unused", begun.prepared.tokenizer, has_order=True)
        await controller.restore(None)
        assert controller.status()["learner_away_s"] == 0
        for order in ("checkpoint", "stop"):
            await controller.order(order)
            await controller.record_obeyed()
        controller.record_learner_death()
        await asyncio.sleep(0.01)
        assert 0 < controller.status()["learner_away_s"] < 60
        # It may have died before anybody knew that it stopped: the next one begins with that.
        assert await controller.standing_orders() == (1, False)
        await controller.restore(None)
        assert controller.status()["learner_away_s"] == 0

    asyncio.run(play())
