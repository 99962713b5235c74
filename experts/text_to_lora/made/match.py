"""The result of a football match, the home side first, such as "Rovers 3 - 1 Athletic"."""

from __future__ import annotations

import random
from typing import NamedTuple

from experts.text_to_lora.made.family import Family, asked

CLUBS = ("Rovers", "Athletic", "Wanderers", "Harriers", "Comets", "Falcons", "Swifts", "Mariners", "Thistle", "Albion")


class Match(NamedTuple):
    home: str
    home_goals: int
    away_goals: int
    away: str

    @property
    def lead(self) -> int:
        """The home side's goals less the away side's."""
        return self.home_goals - self.away_goals

    @property
    def goals(self) -> int:
        return self.home_goals + self.away_goals

    def swapped(self) -> Match:
        return Match(self.away, self.away_goals, self.home_goals, self.home)


def draw(rng: random.Random) -> Match:
    home, away = rng.sample(CLUBS, 2)
    return Match(home, rng.randint(0, 4), rng.randint(0, 4), away)


def show(match: Match) -> str:
    return f"{match.home} {match.home_goals} - {match.away_goals} {match.away}"


def by_result(match: Match, home_win: str, drawn: str, away_win: str) -> str:
    if match.lead == 0:
        return drawn
    return home_win if match.lead > 0 else away_win


def sentence(match: Match) -> str:
    if match.lead < 0:
        match = match.swapped()
    score = f"{match.home_goals}-{match.away_goals}"
    if match.lead == 0:
        return f"{match.home} and {match.away} drew {score}."
    return f"{match.home} beat {match.away} {score}."


def clean_sheets(match: Match) -> str:
    keepers = [match.home] * (match.away_goals == 0) + [match.away] * (match.home_goals == 0)
    return " and ".join(keepers) or "none"


MATCH = Family(
    "match",
    draw,
    show,
    (
        asked(
            "winner",
            lambda match: by_result(match, match.home, "draw", match.away),
            "You are given a football result. Answer with the winner's name, or draw if there is none.",
            "Name the club that won; write draw if neither did.",
            "Who won the match, or was it a draw?",
            "The winning side's name, or draw",
            "Find the side with more goals and write its name, or draw for equal goals.",
            "Albion 1 - 2 Swifts -> Swifts; Albion 1 - 1 Swifts -> draw",
            "Return home if home_goals > away_goals else away if away_goals > home_goals else 'draw'.",
            "Whose fans sing on the way home? Say draw if nobody has more reason than the other.",
        ),
        asked(
            "loser",
            lambda match: by_result(match, match.away, "none", match.home),
            "You are given a football result. Answer with the name of the side that lost, or none after a draw.",
            "Name the beaten club; write none if neither lost.",
            "Who lost the match, if anyone (none)?",
            "The losing side's name, or none",
            "Find the side with fewer goals and write its name, or none for equal goals.",
            "Albion 3 - 2 Swifts -> Swifts; Albion 1 - 1 Swifts -> none",
            "Return away if home_goals > away_goals else home if away_goals > home_goals else 'none'.",
            "Which trainer has a defeat to explain? Say none if neither has.",
        ),
        asked(
            "goals",
            lambda match: match.goals,
            "You are given a football result. Answer with the number of goals that both sides scored together.",
            "Add up the goals of the match.",
            "How many goals were there in all?",
            "The total of goals, both sides together",
            "Add the two numbers of the score.",
            "Comets 2 - 3 Thistle -> 5",
            "Return home_goals + away_goals.",
            "The ball was carried back to the centre after each goal. How often?",
        ),
        asked(
            "margin",
            lambda match: abs(match.lead),
            "You are given a football result. Answer with the difference between the goals, 0 after a draw.",
            "Subtract the smaller number of goals from the larger.",
            "By how many goals was the match won?",
            "The winning margin, never negative",
            "Say how far apart the two numbers of the score are.",
            "Comets 3 - 1 Thistle -> 2",
            "Return abs(home_goals - away_goals).",
            "How many more goals would have made the two sides level?",
        ),
        asked(
            "home",
            lambda match: match.home,
            "A football result names the home side first. Answer with the home side.",
            "Name the hosts of the match.",
            "Which club played on its own ground?",
            "The home club's name",
            "Copy the club on the left.",
            "Olympic 1 - 1 Falcons -> Olympic",
            "Return match.home.",
            "Whose stadium should the reporter go to?",
        ),
        asked(
            "away",
            lambda match: match.away,
            "A football result names the away side last. Answer with the away side.",
            "Name the visitors.",
            "Which club had to travel?",
            "The away club's name",
            "Copy the club on the right.",
            "Olympic 2 - 2 Falcons -> Falcons",
            "Return match.away.",
            "Whose players came by coach to another club's ground?",
        ),
        asked(
            "home_goals",
            lambda match: match.home_goals,
            "You are given a football result. Answer with the number of goals of the home side, named first.",
            "Give the goals that the hosts scored.",
            "How often did the first-named club score?",
            "The goals of the side on the left",
            "Copy the number before the dash.",
            "Harriers 1 - 4 Rovers -> 1",
            "Return match.home_goals.",
            "How many goals did the crowd see from its own team, the one at home?",
        ),
        asked(
            "away_goals",
            lambda match: match.away_goals,
            "You are given a football result. Answer with the number of goals of the away side, named last.",
            "Give the goals that the guests scored.",
            "How often did the second-named club score?",
            "The goals of the side on the right",
            "Copy the number after the dash.",
            "Harriers 3 - 2 Rovers -> 2",
            "Return match.away_goals.",
            "How often did the home side's keeper have to fetch the ball out of the net?",
        ),
        asked(
            "drawn",
            lambda match: match.lead == 0,
            "You are given a football result. Answer yes if the match was drawn, and no otherwise.",
            "Say whether both sides scored equally often: yes or no.",
            "Was it a tie, yes or no?",
            "A draw or not, as yes or no",
            "Compare the two numbers and reply yes if they are the same, no if not.",
            "Mariners 0 - 0 Albion -> yes",
            "Return home_goals == away_goals as yes or no.",
            "Do the two clubs share the points?",
        ),
        asked(
            "home_points",
            lambda match: by_result(match, "3", "1", "0"),
            "You are given a football result. Answer with the home side's points: 3 for a win, 1 for a draw, else 0.",
            "Give the league points earned by the first-named club: 3, 1 or 0.",
            "How many points do the hosts get in the table?",
            "League points of the home club, three for a win and one for a draw",
            "Reply 3 if the left side won, 1 after a draw, 0 if it lost.",
            "Swifts 1 - 2 Comets -> 0",
            "Return 3 if home_goals > away_goals else int(home_goals == away_goals).",
            "By how much does the home club's total in the league grow tonight?",
        ),
        asked(
            "away_points",
            lambda match: by_result(match, "0", "1", "3"),
            "You are given a football result. Answer with the away side's points: 3 for a win, 1 for a draw, else 0.",
            "Give the league points earned by the second-named club: 3, 1 or 0.",
            "How many points do the visitors take home?",
            "League points of the away club, three for a win and one for a draw",
            "Reply 3 if the right side won, 1 after a draw, 0 if it lost.",
            "Swifts 2 - 4 Comets -> 3",
            "Return 3 if away_goals > home_goals else int(home_goals == away_goals).",
            "By how much does the guests' total in the league grow tonight?",
        ),
        asked(
            "swapped",
            lambda match: show(match.swapped()),
            "You are given a football result. Write it the other way round, the away side with its goals first.",
            "Swap the two sides, each with its own goals.",
            "How does the result read with the visitors named first?",
            "The same result seen from the other side",
            "Exchange left and right of the dash, so that every club keeps its goals.",
            "Kestrels 0 - 3 Thistle -> Thistle 3 - 0 Kestrels",
            "Return f'{away} {away_goals} - {home_goals} {home}'.",
            "The away club's paper always names its own team first. How does it print the result?",
        ),
        asked(
            "sentence",
            sentence,
            "You are given a football result. Write it as a sentence, 'X beat Y 2-1.' or 'X and Y drew 1-1.'",
            "Report the result in one short sentence, the winner first.",
            "Who beat whom and how, or who drew with whom, in a sentence?",
            "A line of news: the winner, 'beat', the loser and the score; or both clubs and 'drew'",
            "Turn the result into words with 'beat' or 'drew', the winner's goals first, and a full stop.",
            "Albion 0 - 2 Rovers -> Rovers beat Albion 2-0.",
            "Return f'{winner} beat {loser} {more}-{fewer}.' or f'{home} and {away} drew {score}.'",
            "Read the result out for the evening news, in one full sentence.",
        ),
        asked(
            "letter",
            lambda match: by_result(match, "W", "D", "L"),
            "You are given a football result. Answer W, D or L: did the home side win, draw or lose?",
            "Give the first-named club's result as a letter, W for won, D for drawn or L for lost.",
            "Which letter goes into the hosts' form guide: W, D or L?",
            "W, D or L from the home club's point of view",
            "Compare the left number with the right: larger is W, equal is D, smaller is L.",
            "Falcons 3 - 0 Comets -> W",
            "Return 'W' if home_goals > away_goals else 'D' if home_goals == away_goals else 'L'.",
            "A fan of the home team notes every match in one letter, W, D or L. What does she note?",
        ),
        asked(
            "pools",
            lambda match: by_result(match, "1", "X", "2"),
            "You are given a football result. Answer as on a pools coupon: 1 home win, X draw, 2 away win.",
            "Mark the result with 1, X or 2.",
            "Which sign wins the bet: 1 for the hosts, 2 for the guests or X for neither?",
            "The pools sign of the match, 1, X or 2",
            "Write 1 if the left club won, 2 if the right one did, and X if the goals were equal.",
            "Thistle 0 - 3 Olympic -> 2",
            "Return '1' if home_goals > away_goals else '2' if home_goals < away_goals else 'X'.",
            "You play the football lottery with ones, twos and crosses. Which would have been right?",
        ),
        asked(
            "both_scored",
            lambda match: match.home_goals > 0 and match.away_goals > 0,
            "You are given a football result. Answer yes if both sides scored, and no otherwise.",
            "Say whether each club has at least one goal: yes or no.",
            "Did both teams find the net?",
            "Goals on both sides or not, as yes or no",
            "Reply no if either number of the score is 0, and yes if neither is.",
            "Rovers 2 - 1 Swifts -> yes",
            "Return home_goals > 0 and away_goals > 0 as yes or no.",
            "Did both sets of fans have at least one goal to cheer?",
        ),
        asked(
            "clean_sheet",
            clean_sheets,
            "A football result is given. Name the side that let in no goal, both as 'X and Y', or none.",
            "Say which club kept a clean sheet: one name, both joined by 'and', or none.",
            "Whose keeper was never beaten? Name the club or clubs, or none.",
            "The clubs without a goal against them, or none",
            "If a number is 0, name the club on the other side; if both are, name both with 'and'; else write none.",
            "Rovers 4 - 0 Swifts -> Rovers; Rovers 1 - 2 Swifts -> none",
            "Return ' and '.join(club for club in (home, away) if conceded[club] == 0) or 'none'.",
            "A glove maker rewards the keepers who let nothing in. Whose club gets a parcel, if any (none)?",
        ),
        asked(
            "score",
            lambda match: f"{match.home_goals}-{match.away_goals}",
            "You are given a football result. Write the score alone, without clubs and spaces, as in 2-0.",
            "Keep the two numbers with a hyphen between, home goals first.",
            "What was the score, without the names?",
            "The bare score like 3-2, in the order given",
            "Cross out the clubs and close up the rest.",
            "Olympic 1 - 4 Mariners -> 1-4",
            "Return f'{home_goals}-{away_goals}'.",
            "What stands on the scoreboard between the two crests, in the same order?",
        ),
        asked(
            "four_goals",
            lambda match: match.goals >= 4,
            "You are given a football result. Answer yes if there were four goals or more in all, and no otherwise.",
            "Say whether at least four goals were scored together: yes or no.",
            "Did the match see more than three goals?",
            "Four or more goals in total, as yes or no",
            "Add the two numbers and reply yes from 4 on, no below.",
            "Comets 4 - 0 Albion -> yes",
            "Return home_goals + away_goals >= 4 as yes or no.",
            "The bar pours a free drink at the fourth goal of a match. Was there one, yes or no?",
        ),
        asked(
            "most_goals",
            lambda match: max(match.home_goals, match.away_goals),
            "You are given a football result. Answer with the larger number of goals; after a draw, both are the same.",
            "Give the higher of the two numbers in the score.",
            "How many goals did the side that scored more have?",
            "The greater goal count, whichever side's it is",
            "Look at both numbers and write the one that the other does not exceed.",
            "Falcons 2 - 4 Harriers -> 4; Falcons 3 - 1 Harriers -> 3",
            "Return max(home_goals, away_goals).",
            "How many times did the better attack of the two score?",
        ),
    ),
)
