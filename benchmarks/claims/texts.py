"""What the claims are tried on: sentences in five languages, facts, and code."""

import io
import keyword
import sysconfig
import tokenize
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

import lens_skills as ls
from lens_skills.data import Example
from lens_skills.tasks import Task

LANGUAGES = ("English", "German", "French", "Spanish", "Chinese")

# One meaning per block, in the order of LANGUAGES; Chinese with spaces where it may break off.
PARALLEL = """
The children played in the garden until it was dark
Die Kinder spielten im Garten bis es dunkel wurde
Les enfants ont joué dans le jardin jusqu'à la nuit
Los niños jugaron en el jardín hasta que oscureció
孩子们 在 花园 里 玩 到 天 黑

My sister bought a new car last week
Meine Schwester hat letzte Woche ein neues Auto gekauft
Ma sœur a acheté une nouvelle voiture la semaine dernière
Mi hermana compró un coche nuevo la semana pasada
我 姐姐 上 个 星期 买 了 一 辆 新 车

The train to the city leaves at eight in the morning
Der Zug in die Stadt fährt um acht Uhr morgens ab
Le train pour la ville part à huit heures du matin
El tren a la ciudad sale a las ocho de la mañana
去 城里 的 火车 早上 八 点 出发

The old man reads the newspaper every day
Der alte Mann liest jeden Tag die Zeitung
Le vieil homme lit le journal tous les jours
El viejo lee el periódico todos los días
那个 老人 每天 都 看 报纸

We want to drink a cup of coffee with milk
Wir möchten eine Tasse Kaffee mit Milch trinken
Nous voulons boire une tasse de café au lait
Queremos tomar una taza de café con leche
我们 想 喝 一 杯 加 牛奶 的 咖啡

The weather was so bad that we stayed at home
Das Wetter war so schlecht dass wir zu Hause blieben
Le temps était si mauvais que nous sommes restés à la maison
El tiempo era tan malo que nos quedamos en casa
天气 太 坏 了 所以 我们 留 在 家 里

The teacher explained the lesson to the students again
Der Lehrer erklärte den Schülern die Lektion noch einmal
Le professeur a expliqué encore une fois la leçon aux élèves
El profesor explicó otra vez la lección a los alumnos
老师 又 给 学生 们 讲 了 一 遍 课

In summer many people go to the sea
Im Sommer fahren viele Leute ans Meer
En été beaucoup de gens vont à la mer
En verano mucha gente va al mar
夏天 很 多 人 去 海边

She opened the window because it was too hot in the room
Sie öffnete das Fenster weil es im Zimmer zu warm war
Elle a ouvert la fenêtre parce qu'il faisait trop chaud dans la chambre
Ella abrió la ventana porque hacía demasiado calor en la habitación
她 打开 了 窗户 因为 房间 里 太 热 了

The dog sleeps under the table in the kitchen
Der Hund schläft unter dem Tisch in der Küche
Le chien dort sous la table dans la cuisine
El perro duerme debajo de la mesa en la cocina
狗 睡 在 厨房 的 桌子 下面

He wrote a long letter to his parents
Er schrieb seinen Eltern einen langen Brief
Il a écrit une longue lettre à ses parents
Él escribió una carta larga a sus padres
他 给 父母 写 了 一 封 很 长 的 信

The museum is closed on Mondays and on holidays
Das Museum ist montags und an Feiertagen geschlossen
Le musée est fermé le lundi et les jours fériés
El museo está cerrado los lunes y los días festivos
博物馆 星期一 和 节日 都 不 开门

I have forgotten where I put my keys
Ich habe vergessen wo ich meine Schlüssel hingelegt habe
J'ai oublié où j'ai mis mes clés
He olvidado dónde puse mis llaves
我 忘 了 把 钥匙 放 在 哪里

The river flows through the middle of the old town
Der Fluss fließt mitten durch die alte Stadt
La rivière traverse le centre de la vieille ville
El río pasa por el centro de la ciudad vieja
这 条 河 从 老城 的 中间 流 过

They are building a new hospital near the station
Sie bauen ein neues Krankenhaus in der Nähe des Bahnhofs
Ils construisent un nouvel hôpital près de la gare
Están construyendo un hospital nuevo cerca de la estación
他们 正 在 车站 附近 建 一 家 新 医院

The book on the table belongs to my brother
Das Buch auf dem Tisch gehört meinem Bruder
Le livre sur la table appartient à mon frère
El libro que está en la mesa es de mi hermano
桌子 上 的 书 是 我 哥哥 的

After dinner we took a long walk along the beach
Nach dem Abendessen machten wir einen langen Spaziergang am Strand
Après le dîner nous avons fait une longue promenade sur la plage
Después de cenar dimos un largo paseo por la playa
晚饭 后 我们 沿着 海滩 走 了 很 久

The doctor said that he should sleep more
Der Arzt sagte dass er mehr schlafen sollte
Le médecin a dit qu'il devait dormir davantage
El médico dijo que debía dormir más
医生 说 他 应该 多 睡觉

The farmer sells apples and pears at the market
Der Bauer verkauft Äpfel und Birnen auf dem Markt
Le fermier vend des pommes et des poires au marché
El campesino vende manzanas y peras en el mercado
农民 在 市场 上 卖 苹果 和 梨

It is cheaper to travel by bus than by plane
Es ist billiger mit dem Bus zu reisen als mit dem Flugzeug
Il est moins cher de voyager en bus qu'en avion
Es más barato viajar en autobús que en avión
坐 公共汽车 旅行 比 坐 飞机 便宜

The little girl was afraid of the big black cat
Das kleine Mädchen hatte Angst vor der großen schwarzen Katze
La petite fille avait peur du gros chat noir
La niña pequeña tenía miedo del gran gato negro
小 女孩 害怕 那 只 大 黑 猫

Our neighbours have lived in this house for twenty years
Unsere Nachbarn wohnen seit zwanzig Jahren in diesem Haus
Nos voisins habitent dans cette maison depuis vingt ans
Nuestros vecinos viven en esta casa desde hace veinte años
我们 的 邻居 在 这 座 房子 里 住 了 二十 年

The company will open three new shops next year
Die Firma wird nächstes Jahr drei neue Geschäfte eröffnen
L'entreprise ouvrira trois nouveaux magasins l'année prochaine
La empresa abrirá tres tiendas nuevas el próximo año
公司 明年 要 开 三 家 新 店

You can see the mountains from the top of the tower
Man kann die Berge von der Spitze des Turms sehen
On peut voir les montagnes du sommet de la tour
Se pueden ver las montañas desde lo alto de la torre
从 塔 顶 可以 看到 山
"""

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid",
    "Japan": "Tokyo", "China": "Beijing", "Russia": "Moscow", "Egypt": "Cairo",
    "Greece": "Athens", "Poland": "Warsaw", "Austria": "Vienna", "Portugal": "Lisbon",
    "Ireland": "Dublin", "Sweden": "Stockholm", "Norway": "Oslo", "Finland": "Helsinki",
    "Denmark": "Copenhagen", "Hungary": "Budapest", "Cuba": "Havana", "Peru": "Lima",
    "Canada": "Ottawa", "Kenya": "Nairobi", "Iran": "Tehran", "Iraq": "Baghdad",
    "Turkey": "Ankara", "Ukraine": "Kyiv", "Belgium": "Brussels", "Chile": "Santiago",
    "Syria": "Damascus", "Lebanon": "Beirut", "Thailand": "Bangkok", "Vietnam": "Hanoi",
    "England": "London", "Scotland": "Edinburgh", "Romania": "Bucharest", "Serbia": "Belgrade",
    "Bulgaria": "Sofia", "Nepal": "Kathmandu", "Taiwan": "Taipei", "Afghanistan": "Kabul",
}  # fmt: skip

WORDINGS = (
    "The capital of {} is",
    "The capital city of {} is called",
    "Everyone knows that the capital of {} is",
    "The name of the capital of {} is",
)
"""The last is where neurons are tried; the others find them."""


def sentences(n_meanings: int | None = None) -> Task:
    """Beginnings of each sentence, which break off before a word: the answer is that word.

    The group is the meaning, so no sentence has its translation in another split.
    """
    blocks = [block.splitlines() for block in PARALLEL.strip().split("\n\n")]
    examples = []
    for place, block in enumerate(blocks[:n_meanings]):
        for language, sentence in zip(LANGUAGES, block, strict=True):
            words, space = sentence.split(" "), "" if language == "Chinese" else " "
            cuts = sorted({round(len(words) * share) for share in (0.35, 0.55, 0.75, 0.9)})
            examples += [
                Example(
                    f"{language} {place}/{cut}",
                    space.join(words[:cut]),
                    answer=space + words[cut],
                    labels={"language": language},
                    group=f"meaning {place}",
                )
                for cut in cuts
                if 2 <= cut < len(words)
            ]
    return Task("sentences", examples)


def capitals(wording: str, countries: list[str] | None = None) -> Task:
    """Each country in one wording; the foil is the capital of another."""
    names = list(CAPITALS) if countries is None else countries
    rows = [
        {
            "text": wording.format(country),
            "answer": f" {CAPITALS[country]}",
            "foil": f" {CAPITALS[names[(place + 1) % len(names)]]}",
            "country": country,
        }
        for place, country in enumerate(names)
    ]
    return ls.tasks.table(
        rows, prompt="text", answer="answer", foil="foil", group="country", id="country",
        name="capitals",
    )  # fmt: skip


TOKEN_CLASSES = ("number", "string", "keyword", "name", "operator")


def code(n_files: int, per_class: int, *, seed: int = 0) -> Task:
    """Python from the standard library, cut after a token of a class; the answer is the next one.

    The class of the last token is Python's own (`tokenize`); the group is the file.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in folder.glob("*.py") if path.stat().st_size > 8_000)
    order = np.random.default_rng(seed).permutation(len(files))[:n_files]
    examples = []
    for place in sorted(order.tolist()):
        path = files[place]
        found: dict[str, list[tuple[str, str]]] = {name: [] for name in TOKEN_CLASSES}
        for name, before, after in _cuts(path.read_text(encoding="utf-8")):
            found[name].append((before, after))
        random = np.random.default_rng([seed, place])
        for name, cuts in found.items():
            chosen = random.permutation(len(cuts))[:per_class]
            examples += [
                Example(
                    f"{path.name} {name} {number}",
                    cuts[number][0],
                    answer=cuts[number][1],
                    labels={"token": name},
                    group=path.name,
                )
                for number in sorted(chosen.tolist())
            ]
    return Task("code", examples)


def _cuts(source: str) -> Iterator[tuple[str, str, str]]:
    """(class of the last token, the two lines up to it, the text of the token after it)."""
    lines = source.splitlines(keepends=True)
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for one, after in pairwise(tokens):
        kind = _class(one)
        (row, end), (next_row, start) = one.end, after.start
        text = after.string
        if kind is None or next_row != row or not text.strip() or "\n" in one.string:
            continue
        before = "".join(lines[max(row - 3, 0) : row - 1]) + lines[row - 1][:end]
        gap = lines[row - 1][end:start]
        if len(before) <= 160 and len(text) <= 12 and after.type != tokenize.COMMENT:
            yield kind, before, gap + text


def _class(token: tokenize.TokenInfo) -> str | None:
    if token.type == tokenize.NAME:
        return "keyword" if keyword.iskeyword(token.string) else "name"
    kinds = {tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.OP: "operator"}
    return kinds.get(token.type)
