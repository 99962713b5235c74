"""A web address, such as "https://shop.example/books/14?page=2"."""

from __future__ import annotations

import random
from typing import NamedTuple

from experts.text_to_lora.made.family import Family, asked
from experts.text_to_lora.made.vocabulary import words


class Address(NamedTuple):
    scheme: str
    site: str
    zone: str
    parts: tuple[str, ...]
    query: tuple[str, ...]
    """Name and value, or nothing."""

    @property
    def host(self) -> str:
        return f"{self.site}.{self.zone}"

    @property
    def path(self) -> str:
        return "/" + "/".join(self.parts)

    @property
    def tail(self) -> str:
        """The question mark and what follows it."""
        return f"?{'='.join(self.query)}" if self.query else ""


SITES = words(
    """
    shop news blog wiki forum music travel garden library school museum weather sports recipes cinema bank office maps
    games radio
    """
)
# Names that nobody can own: RFC 2606.
ZONES = ("example", "test", "example.com", "example.net", "example.org")
PARTS = words(
    """
    about archive art books cats city daily data events food guide help home images items jobs list music new photos
    posts search tags team today tours users video world year
    """
)
QUERIES = {
    "page": ("1", "2", "3", "4", "5", "6", "7", "8", "9"),
    "lang": ("en", "de", "fr", "es", "it", "pl"),
    "sort": ("price", "date", "name", "size"),
    "q": ("lamp", "tea", "snow", "boat", "chess", "bread"),
    "view": ("grid", "list", "map", "full"),
}


def draw(rng: random.Random) -> Address:
    parts = rng.sample(PARTS, rng.randint(1, 3))
    if rng.random() < 1 / 3:
        parts[-1] = str(rng.randint(1, 99))
    name = rng.choice(list(QUERIES))
    query = (name, rng.choice(QUERIES[name])) if rng.random() < 2 / 3 else ()
    return Address(rng.choice(("https", "http")), rng.choice(SITES), rng.choice(ZONES), tuple(parts), query)


def show(address: Address) -> str:
    return f"{address.scheme}://{address.host}{address.path}{address.tail}"


ADDRESS = Family(
    "address",
    draw,
    show,
    (
        asked(
            "host",
            lambda address: address.host,
            "You are given a web address. Answer with its host name, dots included.",
            "Copy what is between the two slashes and the next slash.",
            "On which host is the page?",
            "The complete host name in the address",
            "Cut away the scheme before the host and the path after it.",
            "http://zoo.example.com/map/bears?day=3 -> zoo.example.com",
            "Return urlsplit(url).hostname.",
            "Which server does a browser have to call for the page?",
        ),
        asked(
            "path",
            lambda address: address.path,
            "Here is a web address. Answer with its path, from the slash after the host to before any query.",
            "Copy the path of the address, with the slash that it begins with.",
            "What path does the page have on its host?",
            "The path, leading slash included",
            "Cut away the scheme, the host and the query.",
            "http://zoo.example.com/map/bears?day=3 -> /map/bears",
            "Return urlsplit(url).path.",
            "You are already on the right server. Which way do you go from its root, slashes included?",
        ),
        asked(
            "scheme",
            lambda address: address.scheme,
            "You will see a web address. Answer with its scheme, http or https.",
            "Copy the letters before the colon.",
            "Does the address begin with http or https? Repeat what it begins with.",
            "The scheme of the address",
            "Name the protocol that the address asks for.",
            "http://zoo.example.com/map/bears?day=3 -> http",
            "Return urlsplit(url).scheme.",
            "Which protocol, written in small letters, is to be spoken with the server?",
        ),
        asked(
            "secure",
            lambda address: address.scheme == "https",
            "The input is a web address. Answer yes if it asks for encryption, as https does, and no for http.",
            "Say whether the address is secure: yes or no.",
            "Is it an https address?",
            "Yes for https, no for plain http",
            "Check whether there is an s before the colon.",
            "https://zoo.example.com/map -> yes; http://zoo.example.com/map -> no",
            'Return url.startswith("https:"), as yes or no.',
            "Would you dare to type a password there? Yes with encryption, no without.",
        ),
        asked(
            "last_part",
            lambda address: address.parts[-1],
            "You are given a web address. Answer with the last part of its path, without slash and without query.",
            "Copy what follows the last slash, up to any question mark.",
            "Which part of the path comes last?",
            "The final segment of the path",
            "Of the words or numbers that the path is made of, give the one at its end.",
            "http://zoo.example.com/map/bears?day=3 -> bears",
            'Return urlsplit(url).path.split("/")[-1].',
            "The path leads from the general to the special. What is the most special thing in it?",
        ),
        asked(
            "first_part",
            lambda address: address.parts[0],
            "Here is a web address. Answer with the first part of its path, without slashes.",
            "Copy the word or number right after the slash that ends the host name.",
            "Which part of the path comes first?",
            "The opening segment of the path",
            "Give the section of the site that the path enters first.",
            "http://zoo.example.com/map/bears?day=3 -> map",
            'Return urlsplit(url).path.split("/")[1].',
            "The site is a house, and the path leads from room to room. Which room does one enter before the others?",
        ),
        asked(
            "query_value",
            lambda address: address.query[1:],
            "You will see a web address. Answer with the value in its query, after the equals sign, or none.",
            "Copy what follows the equals sign; if there is no query, say none.",
            "Which value does the query give, if there is one? If not, none.",
            "The value of the query's parameter, or none",
            "Cut away everything up to the sign =, and say none if there is no such sign.",
            "http://zoo.example.com/map/bears?day=3 -> 3; http://zoo.example.com/map -> none",
            'Return url.partition("=")[2] or "none".',
            "A form was filled in and sent along with the address. What had been entered, or was it none?",
        ),
        asked(
            "query_name",
            lambda address: address.query[:1],
            "The input is a web address. Answer with the name of the parameter in its query, or none.",
            "Copy what is between the question mark and the equals sign; if there is no query, say none.",
            "What is the query's parameter called, if there is one? If not, none.",
            "The name, not the value, of the query's parameter, or none",
            "Give the word right after the question mark, and none if there is no question mark.",
            "http://zoo.example.com/map/bears?day=3 -> day; http://zoo.example.com/map -> none",
            'Return next(iter(parse_qs(urlsplit(url).query)), "none").',
            "Which field of a form was filled in before the address was sent, or was it none?",
        ),
        asked(
            "has_query",
            lambda address: bool(address.query),
            "You are given a web address. Answer yes if it has a query, and no if it has none.",
            "Say whether there is a question mark in the address: yes or no.",
            "Does anything follow the path?",
            "Yes for an address with a query, no for one without",
            "Check whether the address gives a parameter.",
            "http://zoo.example.com/map/bears?day=3 -> yes; https://zoo.example.com/map -> no",
            'Return "?" in url, as yes or no.',
            "Does the address ask for something special, such as a language, beyond the page itself? Say yes or no.",
        ),
        asked(
            "top_level",
            lambda address: address.zone.split(".")[-1],
            "Here is a web address. Answer with its top-level domain, without the dot.",
            "Copy the last label of the host name.",
            "Which top-level domain does the host belong to?",
            "What comes after the last dot of the host",
            "Cut the host name at its dots and give the last piece.",
            "http://zoo.example.com/map/bears?day=3 -> com",
            'Return urlsplit(url).hostname.split(".")[-1].',
            "Between which dot and which slash is the ending that one pays a registry for? Give the ending.",
        ),
        asked(
            "site",
            lambda address: address.site,
            "You will see a web address. Answer with the first label of its host name, before the first dot.",
            "Copy what is between the two slashes and the first dot.",
            "With which word does the host name begin?",
            "The leftmost label of the host",
            "Cut the host name at its dots and give the first piece.",
            "http://zoo.example.com/map/bears?day=3 -> zoo",
            'Return urlsplit(url).hostname.split(".")[0].',
            "Judging by the word right after the two slashes, what sort of site is it?",
        ),
        asked(
            "without_scheme",
            lambda address: show(address).split("://")[1],
            "The input is a web address. Write it without the scheme, the colon and the two slashes.",
            "Remove http:// or https:// from the address.",
            "What is left of the address behind the two slashes?",
            "The address from the host name to its end",
            "Start at the host and copy the rest of the address, query included.",
            "http://zoo.example.com/map/bears?day=3 -> zoo.example.com/map/bears?day=3",
            'Return url.split("://")[1].',
            "Write the address as people say it, who never bother to mention the protocol.",
        ),
        asked(
            "with_www",
            lambda address: show(address._replace(site=f"www.{address.site}")),
            "You are given a web address. Write it with www. in front of the host name.",
            "Insert www. after the two slashes.",
            "What is the address if its host begins with www?",
            "The whole address with www added to the host",
            "Let the host name start with www and a dot, and keep the rest of the address.",
            "http://zoo.example.com/map/bears?day=3 -> http://www.zoo.example.com/map/bears?day=3",
            'Return url.replace("://", "://www.").',
            "Write the address as in the nineties, when no host did without the three letters.",
        ),
        asked(
            "part_count",
            lambda address: len(address.parts),
            "Here is a web address. Answer with the number of parts that its path has.",
            "Count the slashes of the address, but not the two after the colon.",
            "How many segments are there in the path?",
            "The number of words or numbers in the path, the query left out",
            "Count the pieces of the path that the slashes separate.",
            "http://zoo.example.com/map/bears?day=3 -> 2",
            'Return urlsplit(url).path.count("/").',
            "How many levels below the home page is the page?",
        ),
        asked(
            "parts",
            lambda address: address.parts,
            "You will see a web address. List the parts of its path, with spaces between them and no slashes.",
            "Write the path with spaces for its slashes, beginning with its first word or number.",
            "Which segments is the path made of, listed without slashes?",
            "The segments of the path, separated by spaces",
            "Split the path at its slashes and put spaces between the pieces.",
            "http://zoo.example.com/map/bears?day=3 -> map bears",
            'Return " ".join(urlsplit(url).path.strip("/").split("/")).',
            "Read out the path of the page and pause where there is a slash.",
        ),
        asked(
            "without_query",
            lambda address: show(address._replace(query=())),
            "The input is a web address. Write it without its query; if it has none, leave it as it is.",
            "Remove the question mark and what follows it, if they are there.",
            "What is the address up to any question mark?",
            "The address from its scheme to the end of its path",
            "Drop the parameter at the end, if any, and copy the rest of the address.",
            "http://zoo.example.com/map/bears?day=3 -> http://zoo.example.com/map/bears",
            'Return url.split("?")[0].',
            "Make the address as tidy as possible without leading to another page, and drop what was merely asked.",
        ),
        asked(
            "home",
            lambda address: f"{address.scheme}://{address.host}/",
            "You are given a web address. Answer with the address of the site's home page: scheme, host and one slash.",
            "Cut the address off after the slash that follows the host.",
            "What is the address of the front page of the same site?",
            "The root of the site as an address that ends in a slash",
            "Remove the path but for its first slash, and the query.",
            "http://zoo.example.com/map/bears?day=3 -> http://zoo.example.com/",
            'Return urljoin(url, "/").',
            "You click on the logo of the site. What address do you land at?",
        ),
        asked(
            "secured",
            lambda address: show(address._replace(scheme="https")),
            "Here is a web address. Write it with the scheme https, whatever it had before.",
            "Turn http into https; leave an address that has https already.",
            "What is the encrypted form of the address?",
            "The whole address, beginning with https",
            "Make the address secure by its scheme, and change nothing else.",
            "http://zoo.example.com/map/bears?day=3 -> https://zoo.example.com/map/bears?day=3",
            'Return "https:" + url.split(":", 1)[1].',
            "A browser accepts no unencrypted pages and corrects the address if it must. What does it open?",
        ),
        asked(
            "parent",
            lambda address: show(address._replace(parts=address.parts[:-1], query=())),
            "You will see a web address. Write it without the query and the last part of the path; a path of one part "
            "becomes a single slash.",
            "Go up one level: remove the last segment of the path, the slash before it, and any query.",
            "What is the address of the page one level higher?",
            "The address of the page's parent, without any query",
            "Drop the last part of the path and what follows it, and keep at least one slash after the host.",
            "http://zoo.example.com/map/bears?day=3 -> http://zoo.example.com/map",
            'Return urljoin(url, "."), without the slash at its end unless nothing else follows the host.',
            "The page is gone. At which address do you look for the section that it was in?",
        ),
        asked(
            "mail",
            lambda address: f"info@{address.host}",
            "The input is a web address. Answer with the e-mail address info at the same host.",
            "Write info@ and then the host name.",
            "How does one reach the mailbox info of the site's host?",
            "The mail address info@ at the host",
            "Make an e-mail address of the host by putting info and an at sign before it.",
            "http://zoo.example.com/map/bears?day=3 -> info@zoo.example.com",
            'Return "info@" + urlsplit(url).hostname.',
            "You want to write to the people behind the site, who read their mail under the name info. Where to?",
        ),
    ),
)
