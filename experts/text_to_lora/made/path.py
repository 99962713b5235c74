"""The path of a file, such as "photos/2021/cat.jpg"."""

from __future__ import annotations

import random
from typing import NamedTuple

from experts.text_to_lora.made.family import Family, asked
from experts.text_to_lora.made.vocabulary import NOUNS, words


class File(NamedTuple):
    folders: tuple[str, ...]
    stem: str
    extension: str

    @property
    def folder(self) -> str:
        return "/".join(self.folders)

    @property
    def name(self) -> str:
        return f"{self.stem}.{self.extension}"


FOLDERS = words(
    """
    archive backup common data desktop export family final home inbox local misc new notes office old projects public
    school shared summer team temp travel upload winter work 2019 2020 2021 2022 2023 2024
    """
)
KINDS = {
    **dict.fromkeys(("jpg", "png", "gif"), "picture"),
    **dict.fromkeys(("txt", "md", "docx"), "text"),
    **dict.fromkeys(("csv", "xlsx", "ods"), "table"),
    **dict.fromkeys(("py", "exe", "sh"), "program"),
    **dict.fromkeys(("mp3", "wav", "flac"), "sound"),
}
"""Extension → what such a file holds."""


def draw(rng: random.Random) -> File:
    folders = rng.sample(FOLDERS, rng.randint(1, 4))
    return File(tuple(folders), rng.choice(NOUNS), rng.choice(list(KINDS)))


def show(file: File) -> str:
    return f"{file.folder}/{file.name}"


PATH = Family(
    "path",
    draw,
    show,
    (
        asked(
            "extension",
            lambda file: file.extension,
            "You are given the path of a file. Answer with the file's extension, without the dot.",
            "Copy the letters after the dot.",
            "What is the extension of the file?",
            "The file name's ending, dot left out",
            "Cut away everything up to and including the last dot.",
            "music/live/song.mp3 -> mp3",
            'Return path.rsplit(".", 1)[1].',
            "Which few letters tell a computer with what to open the file?",
        ),
        asked(
            "file_name",
            lambda file: file.name,
            "Here is the path of a file. Answer with the file's name, extension included, and without folders.",
            "Copy what comes after the last slash.",
            "What is the file called, with its extension?",
            "The file name without the folders",
            "Cut away everything up to and including the last slash.",
            "music/live/song.mp3 -> song.mp3",
            "Return os.path.basename(path).",
            "You have opened the folder. Under what full name do you see the file there?",
        ),
        asked(
            "stem",
            lambda file: file.stem,
            "You will see the path of a file. Answer with the file's name, without folders and without the extension.",
            "Copy what is between the last slash and the dot.",
            "What is the file called, folders and extension left out?",
            "The bare name of the file: no folder, no dot, no extension",
            "Cut away the folders before the file's name and the extension after it.",
            "music/live/song.mp3 -> song",
            "Return pathlib.Path(path).stem.",
            "Somebody asks for the file over the phone and cares neither where it is nor of what type. Name it.",
        ),
        asked(
            "top_folder",
            lambda file: file.folders[0],
            "The input is the path of a file. Answer with the name of the topmost folder, with which the path begins.",
            "Copy what comes before the first slash.",
            "Which folder holds all the others on the path?",
            "The outermost folder of a path",
            "Cut away everything from the first slash on.",
            "music/live/song.mp3 -> music",
            'Return path.split("/")[0].',
            "You are on your way to the file, one folder at a time. Which do you open before the rest?",
        ),
        asked(
            "depth",
            lambda file: len(file.folders),
            "You are given the path of a file. Answer with the number of folders on the path.",
            "Count the slashes of the path.",
            "How many folders deep does the file lie?",
            "The number of folders that one opens to reach the file",
            "Count the parts of the path, the file itself left out.",
            "music/live/song.mp3 -> 2",
            'Return path.count("/").',
            "Each folder on the way to the file costs a double click. How many is that before the file?",
        ),
        asked(
            "parent_name",
            lambda file: file.folders[-1],
            "Here is the path of a file. Answer with the name of the folder right above the file, just the name.",
            "Copy the one part of the path that stands before the file's name.",
            "What is the folder called in which the file lies, without the folders above it?",
            "The name of the innermost folder",
            "Give the last folder of the path and nothing of the others.",
            "music/live/song.mp3 -> live",
            "Return pathlib.Path(path).parent.name.",
            "You are looking at the file in a window. Which single folder name is in the window's title?",
        ),
        asked(
            "folder",
            lambda file: file.folder,
            "You will see the path of a file. Answer with the path of its folder, all folders included.",
            "Copy what comes before the last slash.",
            "In which folder is the file? Give the folder's whole path.",
            "The full path of the directory that holds the file",
            "Cut away the file's name and the slash before it.",
            "music/live/song.mp3 -> music/live",
            "Return os.path.dirname(path).",
            "Where would you change to in a terminal in order to work beside the file?",
        ),
        asked(
            "windows",
            lambda file: show(file).replace("/", "\\"),
            "The input is the path of a file. Write the path with backslashes, as Windows does.",
            "Replace the slashes of the path by backslashes.",
            "What does the path look like on Windows?",
            "The path with Windows' separators",
            "Turn each / into a \\ and leave the rest as it is.",
            "music/live/song.mp3 -> music\\live\\song.mp3",
            "Return str(pathlib.PureWindowsPath(path)).",
            "A friend with an old PC is used to strokes that lean the other way. Write the path for this friend.",
        ),
        asked(
            "backup",
            lambda file: f"{file.folder}/{file.stem}.bak",
            "You are given the path of a file. Write the path with the extension bak instead of the file's own.",
            "Replace the file's extension by bak.",
            "What is the path of the backup, which differs only in that it ends in .bak?",
            "The same path with .bak at its end in place of the old ending",
            "Keep the path up to the dot, and write bak after it.",
            "music/live/song.mp3 -> music/live/song.bak",
            'Return str(pathlib.Path(path).with_suffix(".bak")).',
            "An editor saves the former version beside the file, as a bak file of that name. Where is it?",
        ),
        asked(
            "kind",
            lambda file: KINDS[file.extension],
            "Here is the path of a file. Answer with what the file is: picture, text, table, program or sound.",
            "Tell the kind of file by its extension, in one of the words picture, text, table, program and sound.",
            "Is the file a picture, a text, a table, a program or a sound?",
            "The type of content: picture, text, table, program, sound",
            "Sort the file into one of five boxes labelled picture, text, table, program and sound.",
            "music/live/song.mp3 -> sound; work/plan.docx -> text",
            'Return {"jpg": "picture", "md": "text", "csv": "table", "py": "program", "wav": "sound", ...}[extension].',
            "Is it to look at (picture), to read (text), to add up (table), to run (program) or to hear (sound)?",
        ),
        asked(
            "parts",
            lambda file: [*file.folders, file.name],
            "You will see the path of a file. List its folders and the file's name, with spaces between them.",
            "Replace each slash of the path by a space.",
            "Of which folders and which file does the path consist, listed without slashes?",
            "The parts of the path, separated by spaces",
            "Split the path at its slashes and put a space between the pieces.",
            "music/live/song.mp3 -> music live song.mp3",
            'Return " ".join(path.split("/")).',
            "Read out the path, and where there is a slash, just leave a gap.",
        ),
        asked(
            "absolute",
            lambda file: f"/{show(file)}",
            "The input is a relative path. Make it absolute by putting a slash at its beginning.",
            "Put a slash in front of the path.",
            "What is the absolute path if the path given starts from the root of the file system?",
            "The path as seen from the root directory /",
            "Precede the whole path with /.",
            "music/live/song.mp3 -> /music/live/song.mp3",
            'Return "/" + path.',
            "The first folder lies at the very top of a Linux disk. How do you name the file from anywhere?",
        ),
        asked(
            "upper_extension",
            lambda file: f"{file.folder}/{file.stem}.{file.extension.upper()}",
            "You are given the path of a file. Write the whole path with the extension in capitals.",
            "Turn the letters after the dot into capitals, and keep the rest of the path.",
            "What is the path if its extension is in upper case?",
            "The path with an upper-case extension",
            "Change only the letters of the extension, from small to capital.",
            "music/live/song.mp3 -> music/live/song.MP3",
            'Return folder + "/" + stem + "." + extension.upper().',
            "An old camera shouts the ending of each file, and only the ending. How would it write the path?",
        ),
        asked(
            "copy",
            lambda file: f"{file.folder}/{file.stem}_copy.{file.extension}",
            "Here is the path of a file. Write the path of a copy in the same folder, with _copy before the dot.",
            "Insert _copy between the file's name and its extension.",
            "What is the path of the duplicate, whose name has _copy added and whose extension stays?",
            "The path with _copy at the end of the bare file name",
            "Write _copy in front of the dot and leave everything else.",
            "music/live/song.mp3 -> music/live/song_copy.mp3",
            'Return f"{folder}/{stem}_copy.{extension}".',
            "A file manager duplicates cat.gif as cat_copy.gif. Where does it put the duplicate of this file?",
        ),
        asked(
            "readme",
            lambda file: f"{file.folder}/readme.txt",
            "You will see the path of a file. Write the path of the file readme.txt that lies in the same folder.",
            "Replace the file's name and extension by readme.txt.",
            "Where is the readme.txt that is kept beside the file?",
            "The path of the neighbouring file readme.txt",
            "Keep the folders of the path, and let it end in readme.txt.",
            "music/live/song.mp3 -> music/live/readme.txt",
            'Return str(pathlib.Path(path).with_name("readme.txt")).',
            "A note called readme.txt explains what the folder of the file is for. Write where to find the note.",
        ),
        asked(
            "without_extension",
            lambda file: f"{file.folder}/{file.stem}",
            "The input is the path of a file. Write the path without the extension and the dot, but with its folders.",
            "Remove the dot and what follows it from the path.",
            "What is left of the path if its extension is dropped?",
            "The path, folders included and extension left out",
            "Copy the path up to the dot.",
            "music/live/song.mp3 -> music/live/song",
            "Return os.path.splitext(path)[0].",
            "A program adds the ending itself. What path do you type into it?",
        ),
        asked(
            "make_folder",
            lambda file: f"mkdir -p {file.folder}",
            "You are given the path of a file. Write the shell command mkdir -p that makes the file's folders.",
            "Write mkdir -p and then the path of the folder.",
            "Which mkdir command is needed before the file can be saved there?",
            "A mkdir -p command for the folder of the file",
            "Make the file's directory and all those above it, with a line for the shell.",
            "music/live/song.mp3 -> mkdir -p music/live",
            'Return "mkdir -p " + os.path.dirname(path).',
            "The folders do not exist yet. What do you type in a terminal to make them, all at once?",
        ),
        asked(
            "url",
            lambda file: f"https://files.example/{show(file)}",
            "Here is the path of a file. Write the address of the file on the web server https://files.example/.",
            "Put https://files.example/ before the path.",
            "At which address is the file if the server files.example shows it over https?",
            "The file's web address at files.example",
            "Make a link of the path: https, then the host files.example, then the path.",
            "music/live/song.mp3 -> https://files.example/music/live/song.mp3",
            'Return "https://files.example/" + path.',
            "The file was uploaded to files.example with its folders. What do you type into a browser to get it?",
        ),
        asked(
            "flat",
            lambda file: "_".join([*file.folders, file.name]),
            "You will see the path of a file. Write it as a single file name, with underscores for the slashes.",
            "Replace each slash of the path by an underscore.",
            "What is the file called if its folders become part of its name, joined by underscores?",
            "The path flattened to one name with underscores",
            "Join folders and file name with the sign _.",
            "music/live/song.mp3 -> music_live_song.mp3",
            'Return path.replace("/", "_").',
            "Everything goes into one big folder. Put the old folders into the file's name, low lines in between.",
        ),
        asked(
            "one_up",
            lambda file: "/".join([*file.folders[:-1], file.name]),
            "The input is the path of a file. Write the path that it has once it is moved up by one folder.",
            "Remove the innermost folder from the path.",
            "Where is the file after it has been moved into the folder above its own?",
            "The path without the folder right before the file's name",
            "Take out the last folder and keep the folders before it and the file's name.",
            "music/live/song.mp3 -> music/song.mp3",
            "Return str(path.parent.parent / path.name), where path is a pathlib.Path.",
            "The folder is dissolved and the file handed to the next folder up. What is its path now?",
        ),
    ),
)
