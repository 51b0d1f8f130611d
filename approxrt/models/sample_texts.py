"""Ordinary sentences that deviations are measured on, and that NNCF calibrates with, where the user gives no texts."""

from __future__ import annotations

SAMPLE_TEXTS = (
    "The plot wanders for an hour and then forgets where it was going.",
    "A warm, patient film about two brothers who stop talking.",
    "I ordered this in March and it arrived in May, broken.",
    "Works as described; the battery lasts two days.",
    "Rates were left unchanged for the third month in a row.",
    "He scored twice in the first half and was substituted after a knock to the knee.",
    "Is the museum open on Mondays?",
    "It rained.",
    "The committee will publish its findings next week, a spokeswoman said.",
    "Nothing in the second act prepares you for the quiet cruelty of the third.",
    "My doctor lowered the dose, and the headaches were gone within a week.",
    "To reset the device, hold both buttons until the light turns green, then release them one after the other.",
    "Great value for the money, although the manual is useless.",
    "The river rose four metres overnight and cut the village off from the road.",
    "An astonishing waste of a good cast.",
    "She has written eleven novels, none of them longer than two hundred pages.",
    "The update fixes a crash that some users saw when they opened large files.",
    "You will laugh, you will look at your watch, you will laugh again.",
    "Prices differ between shops, so compare before you buy; delivery is usually free above fifty euros.",
    "Not bad, not good, not anything.",
    "The enzyme binds the substrate only in the presence of magnesium.",
    "Turn left at the church and follow the lane down to the harbour.",
    "Every performance is precise, and the music does the rest.",
    "The service was slow, the soup was cold, and the bill was wrong.",
)
