"""One episode on its way into a bag: counted as it arrives, written by a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
import json
from pathlib import Path
import queue
import shutil
import threading

from diffusion_policy_ros.data.bag_writer import BagTopic, BagWriter
from diffusion_policy_ros.data.topic_stats import TopicStats

UNFINISHED = '.unfinished'
"""Ends the name of a folder whose episode is still being recorded, or was never saved."""


@dataclass(frozen=True)
class Arrival:
    """
    A message as the middleware handed it over.

    Attributes:
        data: CDR.
        stamp_ns: header.stamp, or the time of arrival where the type has no header.
        log_ns: system time at which it was received.
        publish_ns: system time at which it was sent.
        number: its publisher's own count; None where the middleware has none.
    """

    data: bytes
    stamp_ns: int
    log_ns: int
    publish_ns: int
    number: int | None


class Recording:
    """
    A bag that is being written, in a folder whose name says that it is unfinished.

    Args:
        folder: of the finished bag.
        topics: that are listed, whether messages come or not.
        max_bytes: that may wait for the disk; what comes beyond is dropped, and counted as such.

    Attributes:
        stats: by topic, those without a message too.
        problem: what stopped the writing, a full disk for example; '' while all is well.
    """

    def __init__(self, folder: Path, topics: Iterable[BagTopic], max_bytes: int) -> None:
        self.folder = folder
        self.unfinished = folder.with_name(folder.name + UNFINISHED)
        self.stats: dict[str, TopicStats] = {}
        self.problem = ''
        self._writer = BagWriter(self.unfinished, folder.name)
        for topic in topics:
            self._writer.announce(topic)
            self.stats[topic.name] = TopicStats()
        self._max_bytes, self._waiting = max_bytes, 0
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, daemon=True)
        self._thread.start()

    def put(self, topic: BagTopic, arrival: Arrival,
            convert: Callable[[bytes], bytes] | None = None) -> int | None:
        """
        Take a message; return the gap before it in nanoseconds, or None where it is dropped.

        Args:
            topic: to write it to.
            arrival: the message.
            convert: from the message as it came to the one that is written, run in the thread.
        """
        stats = self.stats.setdefault(topic.name, TopicStats())
        with self._lock:
            fits = self._waiting + len(arrival.data) <= self._max_bytes and not self.problem
            if fits:
                self._waiting += len(arrival.data)
        if not fits:
            stats.drop(arrival.number)
            return None
        self._queue.put((topic, arrival, convert))
        return stats.add(arrival.stamp_ns, arrival.number)

    def see_publishers(self, name: str, count: int) -> None:
        """Note how many publishers a topic of the bag has now."""
        stats = self.stats.get(name)
        if stats is not None:
            stats.publishers = max(stats.publishers, count)

    def finish(self, custom_data: Mapping[str, str], keep_name: bool = False) -> Path:
        """
        Write what waits, close the bag and give it its final name; return its folder.

        Args:
            custom_data: for the bag's metadata, beside what was counted.
            keep_name: leave the folder marked as unfinished.

        Raises:
            OSError: the bag could not be written; what is there is left for `recover_bag`.
        """
        self._end_thread()
        if self.problem:
            self._writer.abort()
            raise OSError(self.problem)
        counted = {name: stats.summary() for name, stats in self.stats.items()}
        try:
            self._writer.close({**custom_data, 'topics': json.dumps(counted)})
        except OSError:
            self._writer.abort()
            raise
        if keep_name:
            return self.unfinished
        self.unfinished.rename(self.folder)
        return self.folder

    def discard(self) -> None:
        """Stop writing and delete what was written."""
        self._end_thread()
        self._writer.abort()
        shutil.rmtree(self.unfinished)

    def _end_thread(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _write_all(self) -> None:
        while (item := self._queue.get()) is not None:
            topic, arrival, convert = item
            try:
                if not self.problem:
                    data = arrival.data if convert is None else convert(arrival.data)
                    self._writer.write(topic, data, arrival.log_ns, arrival.publish_ns,
                                       arrival.number or 0)
            except Exception as error:  # whatever it is, the episode is not whole
                self.problem = f'{topic.name}: {error}'
            with self._lock:
                self._waiting -= len(arrival.data)
